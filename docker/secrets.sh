#!/usr/bin/env bash
# Make the secrets that docker/compose.yaml mounts, each once: docker/secrets.sh
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
for name in mlflow_admin_password mlflow_session_key postgres_password object_store_key; do
    [ -s "secrets/$name" ] || head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "secrets/$name"
    chmod 0444 "secrets/$name"  # read by the containers' own users; the folder keeps others out
done
chmod 0700 secrets
