# qwen: text generation inside PostgreSQL.
#
# Three artefacts: qwen.so (extension/ only, built by PGXS), qwen-engine (engine/ + kernels/, an ordinary program) and
# qwen_cuda.so (kernels/cuda/, where nvcc and cuBLASLt are found), a plug-in that only the engine ever opens.
#
#   make                  build everything that can be built here
#   make install          into the server that PG_CONFIG names
#   make installcheck     SQL tests against a running server
#   make check            all tests, on throw-away servers (bash test/check)
#   make unit             unit tests; unit-asan: under ASan and UBSan
#   make fuzz             fuzz targets, FUZZ_SECONDS each; fuzz-replay: the corpora alone, no clang needed
#   make bench            measure the engine, beside the programs in PEER=DIR:DIR if given, its memory, and the way from
#                         SQL to it
#   make gpucheck         all tests that need a GPU; gpubench: measure the engine on it

# PGXS has a check target of its own, which only says that it cannot; ours wants nothing of PGXS.
ifneq (,$(filter check,$(MAKECMDGOALS)))
.PHONY: $(MAKECMDGOALS)
check: $(filter-out check,$(MAKECMDGOALS))
	bash test/check
$(filter-out check,$(MAKECMDGOALS)):
	+$(MAKE) $@
else

EXTENSION = qwen
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" qwen.control)

MODULE_big = qwen
OBJS = $(patsubst %.c,%.o,$(wildcard extension/*.c))
DATA = $(wildcard sql/qwen--*--*.sql)
DATA_built = sql/qwen--$(EXTVERSION).sql

REGRESS = $(patsubst test/sql/%.sql,%,$(wildcard test/sql/*.sql))
# The tests' texts are UTF-8, and their order is that of bytes, whatever the server's own databases are.
REGRESS_OPTS = --inputdir=test --outputdir=test --load-extension=qwen --encoding=UTF8 --no-locale

PG_CONFIG ?= pg_config
# Bitcode would be built for every object and brings nothing to functions that wait for another process.
override with_llvm := no
PG_CPPFLAGS = -I$(srcdir) -I$(srcdir)/extension
# The server's headers are not clean of the four that are off.
PG_CFLAGS = -std=gnu11 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers \
	-Wno-declaration-after-statement
EXTRA_CLEAN = build qwen-engine qwen_cuda.so test/results test/regression.diffs test/regression.out

PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq (,$(wildcard $(PGXS)))
$(error $(PG_CONFIG) names no server to build for: install postgresql-server-dev-15, or set PG_CONFIG)
endif
all:
include $(PGXS)

# Newer compilers built some servers and left a flag in their configuration that older ones refuse.
override CFLAGS := $(filter-out -Wmissing-variable-declarations,$(CFLAGS))

# Objects that were built for another server must not be taken for this one's. COPT: more flags, for tests.
SERVER_STAMP := build/server
SERVER := $(strip $(shell $(PG_CONFIG) --version) $(includedir_server) $(COPT))
ifneq ($(SERVER),$(shell cat $(SERVER_STAMP) 2>/dev/null))
.PHONY: $(SERVER_STAMP)
endif
$(SERVER_STAMP):
	@mkdir -p $(@D)
	@echo '$(SERVER)' >$@
$(OBJS): $(SERVER_STAMP) $(wildcard extension/*.h) engine/protocol.h

sql/qwen--$(EXTVERSION).sql: sql/qwen.sql qwen.control
	cp $< $@

include engine.mk

all: qwen-engine cuda

install: install-engine
.PHONY: install-engine
install-engine: qwen-engine cuda
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)' '$(DESTDIR)$(datadir)/qwen/demo-model'
	$(INSTALL_PROGRAM) qwen-engine '$(DESTDIR)$(pkglibdir)/qwen-engine'
	$(INSTALL_DATA) $(wildcard test/data/demo-model/*.json test/data/demo-model/*.safetensors) \
		'$(DESTDIR)$(datadir)/qwen/demo-model'
ifneq (,$(CUDA_PLUGIN))
	$(INSTALL_SHLIB) qwen_cuda.so '$(DESTDIR)$(pkglibdir)/qwen_cuda.so'
endif

uninstall: uninstall-engine
.PHONY: uninstall-engine
uninstall-engine:
	rm -f '$(DESTDIR)$(pkglibdir)/qwen-engine' '$(DESTDIR)$(pkglibdir)/qwen_cuda.so'
	rm -rf '$(DESTDIR)$(datadir)/qwen'

.PHONY: bench
bench: all
	python3 test/bench/cpu.py
	python3 test/bench/memory.py
	bash test/bench/run
	bash test/bench/rows

endif
