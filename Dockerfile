# The image for GPUs: `docker run --gpus all IMAGE train data.url=s3://...`. It holds no secrets;
# credentials come with the environment or a mounted file at run time.
#
# CUDA 13.0.3 is what torch 2.13.0 is built with: its wheels on PyPI ask for cuda-toolkit==13.0.3
# and bring cuBLAS, cuDNN and NCCL along. The toolkit here serves compilers only. It has to agree,
# for DeepSpeed refuses to compile an operator when nvcc differs from torch in as little as 13.1.
# The host needs a driver that knows CUDA 13.0 (580 or newer).
#
# The last stage too stands on the `devel` image. Nothing that training uses today is compiled at run
# time, but DeepSpeed's operators (offloading, asynchronous I/O) are, for the GPU found then, with
# nvcc, g++ and ninja; Triton, behind torch.compile, needs a C compiler and Python's headers. A
# `runtime` image would be some gigabytes smaller and fail at that moment, on the cluster.
FROM nvidia/cuda:13.0.3-devel-ubuntu24.04 AS base

# Python 3.12 is Ubuntu 24.04's own. The pins leave the packaging revision open, because Ubuntu
# deletes superseded ones. Without libibverbs NCCL would leave InfiniBand unused and say little.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        g++=4:13.2.0-* \
        ibverbs-providers=50.0-* \
        libibverbs1=50.0-* \
        python3.12-dev=3.12.3-* \
        python3.12-venv=3.12.3-* \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH


FROM base AS build

RUN python3.12 -m venv /opt/venv
WORKDIR /source

# The dependencies, in a layer that a change of our own code leaves alone.
COPY pyproject.toml README.md LICENSE ./
# With all extras: a setting that needs one shall not fail once the job has its GPUs.
RUN pip install --no-cache-dir '/source[demo,table,postgres,tensorboard,8bit]'

COPY conf conf
COPY data data
COPY training training
COPY launch launch
RUN pip install --no-cache-dir --no-deps --force-reinstall /source


FROM base

# A fixed number, so that a cluster can check that it is not root and volumes can be given to it.
# The home folder takes what is compiled and downloaded at run time.
RUN useradd --no-log-init --create-home --uid 10001 --user-group foundry
COPY --from=build /opt/venv /opt/venv

ENV PYTHONUNBUFFERED=1
WORKDIR /home/foundry
USER 10001:10001
ENTRYPOINT ["ldm"]
