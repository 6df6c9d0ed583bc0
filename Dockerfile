# One image for every container of docker-compose.geo.yml that is ours: nodes, and what sets the links.
#
#   docker build -t geokv:latest .
#
# Where the package index is reached over the host's own network: docker build --network host -t geokv:latest .

FROM python:3.11-slim AS build
WORKDIR /src
RUN python3 -m venv --without-pip /opt/geokv

# What geokv needs, at the versions of constraints.txt, in a layer that changes only with these two files.
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["uvloop"], sep="\n")' > requirements.txt \
 && python3 -m pip --python /opt/geokv/bin/python install --no-cache-dir --disable-pip-version-check \
      --only-binary :all: -c constraints.txt -r requirements.txt

# geokv itself. Its wheel is built by the pinned build tools, which stay behind in this stage.
COPY LICENSE README.md ./
COPY geokv geokv
COPY topology topology
RUN python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt hatchling \
 && /opt/tools/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-build-isolation --no-deps -w /wheels . \
 && python3 -m pip --python /opt/geokv/bin/python install --no-cache-dir --disable-pip-version-check --no-deps /wheels/*.whl

FROM python:3.11-slim
# A volume that is mounted on an empty directory takes over its owner, so the nodes may write to theirs.
RUN groupadd --gid 10001 geokv \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/geokv --shell /usr/sbin/nologin geokv \
 && install -d -m 0700 -o geokv -g geokv /var/lib/geokv
COPY --from=build /opt/geokv /opt/geokv
COPY topology /etc/geokv
# Compiled at build time; at run time the root file system is read-only.
ENV PATH=/opt/geokv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/geokv
EXPOSE 7100
ENTRYPOINT ["geokv"]
CMD ["--help"]
