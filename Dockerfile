# The host with the functions of this folder:
#
#   docker build -t spaces .
#   docker run --rm -p 127.0.0.1:8000:8000 spaces
#
# To serve other functions, mount them (-v ./functions:/app/functions:ro) or build an image FROM this one.
# The journal of submitted calls is in /app/.spaces: keep it in a volume (-v spaces:/app/.spaces), or it ends with the
# container.

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY runtime/ runtime/
RUN python -m venv /opt/spaces \
    && /opt/spaces/bin/pip install --no-cache-dir '.[fast]'

FROM python:3.13-slim
COPY --from=build /opt/spaces /opt/spaces
ENV PATH=/opt/spaces/bin:$PATH

# Functions run with the rights of this user, which may write nothing but the state folder and /tmp.
RUN useradd --system --user-group --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin spaces \
    && install -d -o spaces -g spaces /app/.spaces
WORKDIR /app
COPY spaces.toml ./
COPY functions/ functions/
USER spaces

EXPOSE 8000
# SIGTERM drains: what runs is finished within drain_timeout (30 s); give `docker stop --time` a little more.
STOPSIGNAL SIGTERM
# No proxy from the environment: the question is for this container.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", \
    "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=2)"]

# --open: in a container the host must listen on all addresses, and without tokens it refuses to do so unasked, because
# whoever reaches it may run every function. Publish the port on loopback only, as above, or put tokens into spaces.toml
# (docs/how-to/authenticate.md) and leave --open out: docker run … spaces spaces serve /app --bind 0.0.0.0:8000
CMD ["spaces", "serve", "/app", "--bind", "0.0.0.0:8000", "--open"]
