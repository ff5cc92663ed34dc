# catlip in a container, for a CPU or for NVIDIA's GPUs. Checked by reading and by hadolint; CI has no docker to build it.
#
#   docker build -t catlip .                                        # CPU
#   docker build -t catlip:cuda --build-arg TORCH=cu130 .           # what `uv pip install --torch-backend` takes
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" catlip vocab pictures.csv
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" --gpus all --shm-size 8g catlip:cuda pretrain ...
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH=cpu
# git tells the version. It stays in this stage, as uv does. No user's cache is there to be filled.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY . .
# Compiled here, since the user of the container cannot write there, and importing torch would take twice as long.
RUN uv venv /opt/catlip \
    && uv pip install --no-cache --compile-bytecode --python /opt/catlip --torch-backend "${TORCH}" .

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/catlip /opt/catlip
RUN useradd --create-home --uid 1000 catlip
# Caches where any user may write, as --user has no home here; mount a volume at /tmp/catlip to keep them.
ENV PATH=/opt/catlip/bin:$PATH \
    CATLIP_CACHE=/tmp/catlip \
    HF_HOME=/tmp/catlip/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["catlip"]
CMD ["--help"]
