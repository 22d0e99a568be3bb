# The app in a container. This file is not built by the tests.
#
#     docker build -t clip-randlora .
#     docker run --publish 127.0.0.1:7860:7860 --volume clip-randlora:/data clip-randlora
#
# With an NVIDIA GPU, add --gpus all. Projects and downloaded weights are kept in the volume.
FROM python:3.12-slim

WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY clip_randlora clip_randlora
COPY configs configs
RUN pip install --no-cache-dir '.[app,data,export]' && rm -r /source/*

RUN useradd --create-home user && mkdir /data && chown user /data
USER user
WORKDIR /data
ENV HF_HOME=/data/hub
EXPOSE 7860
CMD ["clip-randlora", "app", "--host", "0.0.0.0", "--folder", "/data/projects"]
