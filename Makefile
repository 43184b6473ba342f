# qwen: text generation inside PostgreSQL.
#
# Three artefacts: qwen.so (extension/ only, built by PGXS), qwen-engine (engine/ + kernels/, an ordinary program) and
# qwen_cuda.so (kernels/cuda/, where nvcc is found), a plug-in that only the engine ever opens.
#
#   make                  build everything that can be built here
#   make install          into the server that PG_CONFIG names
#   make check            all tests against a temporary server
#   make installcheck     SQL tests against a running server
#   make unit | fuzz | bench | gpucheck

EXTENSION = qwen
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" qwen.control)

MODULE_big = qwen
OBJS = $(patsubst %.c,%.o,$(wildcard extension/*.c))
DATA = $(wildcard sql/qwen--*--*.sql)
DATA_built = sql/qwen--$(EXTVERSION).sql

TESTS = $(wildcard test/sql/*.sql)
REGRESS = $(patsubst test/sql/%.sql,%,$(TESTS))
REGRESS_OPTS = --inputdir=test --outputdir=test --load-extension=qwen

PG_CONFIG ?= pg_config
# Bitcode would be built for every object and brings nothing to functions that wait for another process.
override with_llvm := no
PG_CPPFLAGS = -I$(srcdir) -I$(srcdir)/extension
PG_CFLAGS = -std=gnu11 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers -Wno-declaration-after-statement

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

sql/qwen--$(EXTVERSION).sql: sql/qwen.sql
	cp $< $@

include engine.mk

all: qwen-engine $(CUDA_PLUGIN)
install: install-engine
