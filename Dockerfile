# tapioca-export in an image, with the versions of requirements.lock:
#     docker build -t tapioca-export .
#     docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" tapioca-export check out --min-target-gain 0
# PyTorch's default wheels hold CUDA; for a smaller image without it name PyTorch's index of CPU wheels:
#     docker build --build-arg PIP_EXTRA_INDEX_URL=INDEX -t tapioca-export .
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL}

WORKDIR /opt/tapioca-export
COPY LICENSE README.md pyproject.toml requirements.lock setup.cfg ./
COPY tapioca_export ./tapioca_export
RUN pip install --constraint requirements.lock ".[audio,vision]"

# Any user may run it: caches go where everyone can write.
ENV HF_HOME=/tmp/huggingface
RUN useradd --create-home tapioca
USER tapioca
WORKDIR /work
ENTRYPOINT ["tapioca-export"]
CMD ["--help"]
