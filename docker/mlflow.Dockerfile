# MLflow's server with passwords, PostgreSQL and S3. Built by compose, which passes the base image from docker/images.env.
ARG PYTHON_IMAGE
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="speechkd-mlflow" \
      org.opencontainers.image.description="MLflow for speechkd: passwords, allowed hosts, no jobs, no pickle" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt 'mlflow[auth]' boto3 psycopg2-binary \
    && rm /tmp/constraints.txt \
    && useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin mlflow
COPY --chmod=0555 docker/mlflow.sh /usr/local/bin/mlflow-server
COPY --chmod=0444 docker/basic_auth.ini /etc/mlflow/basic_auth.ini
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 5000
ENTRYPOINT ["mlflow-server"]
