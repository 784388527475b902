# The pipeline that WAXLAKE_SPEC names, as a plain Bytewax deployment. Mount your own project over /app, or build on this image.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY waxlake waxlake
COPY connectors connectors
COPY sinks sinks
COPY flows flows
RUN python -m venv /opt/waxlake \
    && /opt/waxlake/bin/pip install --no-cache-dir -c constraints.txt '.[avro,mysql,postgres,protobuf,registry]'

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 waxlake
COPY --from=build /opt/waxlake /opt/waxlake
WORKDIR /app
COPY --chown=waxlake:waxlake flows flows
COPY --chown=waxlake:waxlake deploy/waxlake.yml waxlake.yml
ENV PATH=/opt/waxlake/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WAXLAKE_SPEC=/app/waxlake.yml \
    BYTEWAX_DATAFLOW_API_ENABLED=1
USER waxlake
# Bytewax serves /dataflow and /metrics of the running dataflow here.
EXPOSE 3030
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:3030/metrics', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "bytewax.run", "flows.main"]
