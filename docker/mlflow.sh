#!/usr/bin/env bash
# Start MLflow's server in its container. Secrets come from files, reach the server in its environment, and never stand in its arguments.
set -euo pipefail
secrets=${SECRETS:-/run/secrets}

# Print a secret; stop if it is missing or too short to be one.
secret() {
    local value
    value=$(cat "$secrets/$1")
    if [ "${#value}" -lt 12 ]; then
        echo "mlflow-server: secret $1 must have at least 12 characters" >&2
        return 1
    fi
    printf '%s' "$value"
}

MLFLOW_AUTH_ADMIN_PASSWORD=$(secret mlflow_admin_password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow_session_key)
PGPASSWORD=$(secret postgres_password)
AWS_SECRET_ACCESS_KEY=$(secret object_store_key)
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY PGPASSWORD AWS_SECRET_ACCESS_KEY
export AWS_ACCESS_KEY_ID=${AWS_ACCESS_KEY_ID:-mlflow}
export MLFLOW_AUTH_CONFIG_PATH=${MLFLOW_AUTH_CONFIG_PATH:-/etc/mlflow/basic_auth.ini}
# What an attacker who gets past the password would use first.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_DISABLE_TELEMETRY=true

exec mlflow server \
    --app-name basic-auth \
    --host "${LISTEN:-0.0.0.0}" --port "${PORT:-5000}" --workers "${WORKERS:-4}" \
    --backend-store-uri "${BACKEND_STORE_URI:-postgresql+psycopg2://mlflow@postgres/mlflow}" \
    --serve-artifacts --artifacts-destination "${ARTIFACTS:-s3://mlflow/artifacts}" \
    --allowed-hosts "${ALLOWED_HOSTS:?the names by which clients call this server, e.g. mlflow.example.org}" \
    --cors-allowed-origins "${ALLOWED_ORIGINS:?the addresses of its pages, e.g. https://mlflow.example.org}" \
    --x-frame-options DENY
