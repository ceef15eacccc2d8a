#!/bin/sh
# Start the object store in its container, with one user and one bucket. The key comes from a secret and stands in a file that only it reads.
set -eu
umask 077
key=$(cat /run/secrets/object_store_key)
cat > /tmp/s3.json <<JSON
{"identities": [{"name": "mlflow", "credentials": [{"accessKey": "mlflow", "secretKey": "$key"}],
                 "actions": ["Read:mlflow", "Write:mlflow", "List:mlflow", "Tagging:mlflow"]}]}
JSON
(
    until echo "s3.bucket.create -name mlflow" | weed shell -master=localhost:9333 >/dev/null 2>&1; do sleep 2; done
) &
exec weed server -dir=/data -ip=localhost -ip.bind=0.0.0.0 -master.volumeSizeLimitMB=1024 -volume.max=0 -s3 -s3.port=8333 -s3.config=/tmp/s3.json
