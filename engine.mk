# engine.mk: the engine, its kernels and their tests. Knows nothing of PostgreSQL.
#
# Portable builds: no -march=native. Each instruction set is one file compiled with its own flags and chosen at run time.

BUILD ?= build
ENGINE_CC ?= cc
ENGINE_OPT ?= -O2 -g
# More of the same for another kind of build: sanitizers, coverage.
ENGINE_EXTRA ?=
ENGINE_WARN = -std=gnu11 -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes \
	-Wvla -Wno-unused-parameter -Wno-missing-field-initializers
ENGINE_PKGS = jansson libpcre2-8 libutf8proc
ENGINE_CFLAGS = $(ENGINE_OPT) $(ENGINE_WARN) -D_GNU_SOURCE -DPCRE2_CODE_UNIT_WIDTH=8 -pthread -fno-math-errno \
	-I. $(shell pkg-config --cflags $(ENGINE_PKGS)) $(ENGINE_EXTRA)
ENGINE_LIBS = $(shell pkg-config --libs $(ENGINE_PKGS)) -lm -ldl -pthread

ENGINE_SRC = $(wildcard engine/*.c) $(wildcard kernels/*.c kernels/ref/*.c kernels/cpu/*.c)
ENGINE_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(ENGINE_SRC))
ENGINE_LIB_OBJ = $(filter-out $(BUILD)/engine/main.o,$(ENGINE_OBJ))
ENGINE_MAKE = $(MAKE) --no-print-directory -f engine.mk

qwen-engine: $(BUILD)/qwen-engine
	cp $< $@

$(BUILD)/qwen-engine: $(BUILD)/engine/main.o $(BUILD)/libqwen.a
	$(ENGINE_CC) $(ENGINE_OPT) $(ENGINE_EXTRA) -o $@ $^ $(ENGINE_LIBS)

$(BUILD)/libqwen.a: $(ENGINE_LIB_OBJ)
	rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -MMD -MP -c -o $@ $<

# One set of kernels an instruction set. The order of every sum is part of what a kernel promises, so the compiler may
# neither reassociate nor fuse on its own.
KERNEL_OPT ?= -O3
KERNEL_MATH = $(KERNEL_OPT) -fno-signed-zeros -fno-trapping-math -ffp-contract=off
$(BUILD)/kernels/cpu/%.o: ENGINE_CFLAGS += $(KERNEL_MATH)
FOR_AVX2 = -mavx2 -mfma -mf16c
FOR_AVX512 = $(FOR_AVX2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
$(BUILD)/kernels/cpu/cpu_avx2.o: ENGINE_CFLAGS += $(FOR_AVX2)
$(BUILD)/kernels/cpu/cpu_avx512.o: ENGINE_CFLAGS += $(FOR_AVX512)
$(BUILD)/kernels/cpu/cpu_avx512bf16.o: ENGINE_CFLAGS += $(FOR_AVX512) -mavx512bf16
$(BUILD)/kernels/cpu/cpu_amx.o: ENGINE_CFLAGS += $(FOR_AVX512) -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8

-include $(ENGINE_OBJ:.o=.d)

include test/data/data.mk

# ---- unit tests (cmocka, TAP) ----

UNIT_BIN = $(patsubst test/unit/%.c,$(BUILD)/unit/%,$(wildcard test/unit/test_*.c))

$(BUILD)/unit/%: test/unit/%.c $(wildcard test/unit/*.h) $(BUILD)/libqwen.a
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -o $@ $< $(BUILD)/libqwen.a $(ENGINE_LIBS) -lcmocka

.PHONY: unit unit-asan unit-tiles
unit: $(UNIT_BIN)
	CMOCKA_MESSAGE_OUTPUT=TAP prove -e '' $(UNIT_BIN)

SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
# Kernels that are watched at each step take minutes to compile with more.
SANITIZED = ENGINE_OPT='-O1 -g' KERNEL_OPT=-O1 ENGINE_EXTRA='$(SANITIZE)'

unit-asan:
	+$(ENGINE_MAKE) BUILD=$(BUILD)/asan $(SANITIZED) unit

# The set for AMX on a model of its tiles, which any processor with AVX-512 and BF16 can run: the tests that reach it.
TILE_TESTS = kernels attention tiles forward

unit-tiles:
	+$(ENGINE_MAKE) BUILD=$(BUILD)/tiles ENGINE_EXTRA=-DQWEN_EMULATE_TILES \
		UNIT_BIN='$(TILE_TESTS:%=$(BUILD)/tiles/unit/test_%)' $(BUILD)/tiles/qwen-engine unit

# ---- fuzz targets: test/fuzz/fuzz_NAME.c over test/fuzz/corpus/NAME ----

FUZZ_SECONDS ?= 60
FUZZ_CC ?= clang
FUZZ_NAMES = $(patsubst test/fuzz/fuzz_%.c,%,$(wildcard test/fuzz/fuzz_*.c))
FUZZ_BIN = $(FUZZ_NAMES:%=$(BUILD)/fuzz/%)

# A target and replay.c, which feeds it files, or the same under libFuzzer, which brings a main of its own.
$(BUILD)/fuzz/%: test/fuzz/fuzz_%.c $(FUZZ_MAIN) $(BUILD)/libqwen.a
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -Wno-missing-prototypes $(FUZZ_LINK) -o $@ $(filter-out %.h,$^) $(ENGINE_LIBS)

.PHONY: fuzz fuzz-replay fuzz-targets $(FUZZ_NAMES:%=fuzz-run-%) $(FUZZ_NAMES:%=fuzz-replay-%)
fuzz-targets: $(FUZZ_BIN)

fuzz:
	+$(ENGINE_MAKE) BUILD=$(BUILD)/libfuzzer ENGINE_CC=$(FUZZ_CC) ENGINE_OPT='-O1 -g' \
		ENGINE_EXTRA='$(SANITIZE) -fsanitize=fuzzer-no-link' FUZZ_LINK=-fsanitize=fuzzer fuzz-targets
	+$(ENGINE_MAKE) BUILD=$(BUILD)/libfuzzer $(FUZZ_NAMES:%=fuzz-run-%)

# New inputs go to the build folder; what is found there and worth keeping is copied into the corpus by hand.
$(FUZZ_NAMES:%=fuzz-run-%): fuzz-run-%:
	@mkdir -p $(BUILD)/fuzz/found/$* $(BUILD)/fuzz/crashes
	$(BUILD)/fuzz/$* -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 \
		-artifact_prefix=$(BUILD)/fuzz/crashes/$*- $(BUILD)/fuzz/found/$* test/fuzz/corpus/$*

fuzz-replay:
	+$(ENGINE_MAKE) BUILD=$(BUILD)/asan $(SANITIZED) FUZZ_MAIN=test/fuzz/replay.c \
		fuzz-targets
	+$(ENGINE_MAKE) BUILD=$(BUILD)/asan $(FUZZ_NAMES:%=fuzz-replay-%)

$(FUZZ_NAMES:%=fuzz-replay-%): fuzz-replay-%:
	$(BUILD)/fuzz/$* test/fuzz/corpus/$*

# ---- the CUDA plug-in, where NVIDIA's toolkit is ----
#
# nvcc, cuBLASLt and NCCL are found where NVIDIA's and Debian's packages put them. CUDA_HOME, CUBLAS_HOME and NCCL_HOME
# name other folders, with bin/, or include/ and lib/ or lib64/, in them; each is then the only place that is looked at.
# What is missing is named in one line and the rest is built: without NCCL, sums over GPUs go through copies.

NVCC ?= $(firstword $(if $(CUDA_HOME),$(wildcard $(CUDA_HOME)/bin/nvcc),\
	$(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc)))
CUDA_ROOT := $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v $(NVCC))))

# $(call cuda_file,FOLDERS,FILES): the first of the files that is there. $(call cuda_library,FOLDERS,NAME): a shared
# library; Python's packages have it under the name alone that programs load.
cuda_file = $(firstword $(wildcard $(foreach folder,$(1),$(2:%=$(folder)/%))))
cuda_library = $(call cuda_file,$(1),$(foreach lib,lib64 lib lib/*-linux-gnu targets/*-linux/lib,\
	$(lib)/lib$(2).so $(lib)/lib$(2).so.[0-9]*))
cuda_include = $(patsubst %/include/$(2),%/include,$(call cuda_file,$(1),include/$(2)))

CUBLAS_PLACES = $(or $(CUBLAS_HOME),$(strip $(CUDA_ROOT) /usr/local /usr))
NCCL_PLACES = $(or $(NCCL_HOME),$(strip $(CUDA_ROOT) /usr/local /usr))
CUBLAS_INCLUDE := $(call cuda_include,$(CUBLAS_PLACES),cublasLt.h)
CUBLAS_LIB := $(call cuda_library,$(CUBLAS_PLACES),cublasLt)
NCCL_INCLUDE := $(call cuda_include,$(NCCL_PLACES),nccl.h)
NCCL_LIB := $(call cuda_library,$(NCCL_PLACES),nccl)
CUDA_NCCL := $(and $(NCCL_INCLUDE),$(NCCL_LIB))

.PHONY: cuda cuda-load
ifeq (,$(and $(NVCC),$(CUBLAS_INCLUDE),$(CUBLAS_LIB)))
CUDA_PLUGIN =
cuda cuda-load:
	@echo "qwen_cuda.so is not built: $(if $(NVCC),no cublasLt in $(CUBLAS_PLACES),no nvcc in $(or $(CUDA_HOME),PATH \
		or /usr/local/cuda))"
else
CUDA_PLUGIN = qwen_cuda.so

# Of the kinds that we care for, those that this nvcc knows, and the newest as PTX for what comes after it. CUDA_ARCHS=90
# builds for that one alone, CUDA_ARCHS=native for the GPUs of this machine.
ifndef CUDA_ARCHS
CUDA_ARCHS := $(filter 80 90 100 120,$(patsubst sm_%,%,$(shell $(NVCC) --list-gpu-code)))
endif
CUDA_CODE = $(if $(filter native,$(CUDA_ARCHS)),-arch=native,\
	$(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
	$(foreach a,$(lastword $(CUDA_ARCHS)),-gencode arch=compute_$(a),code=compute_$(a)))
# What the compilers search of their own accord must not be named: it would come before their own headers.
CUDA_INCLUDES = $(filter-out $(CUDA_ROOT)/include /usr/include,$(sort $(CUBLAS_INCLUDE) $(if $(CUDA_NCCL),$(NCCL_INCLUDE))))
CUDA_FLAGS = $(CUDA_CODE) -O3 -g -lineinfo -std=c++17 -Werror all-warnings \
	-Xcompiler -fPIC,-Wall,-Wextra,-Werror,-fvisibility=hidden -I. $(CUDA_INCLUDES:%=-isystem %) \
	$(if $(CUDA_NCCL),,-DQWEN_NO_NCCL)
# The libraries are found again where they were found now.
CUDA_LIBS = $(CUBLAS_LIB) $(if $(CUDA_NCCL),$(NCCL_LIB))
CUDA_LINK = --cudart shared $(CUDA_LIBS:%=-Xlinker %) -Xlinker --no-undefined $(foreach folder,\
	$(sort $(dir $(call cuda_library,$(CUDA_ROOT) /usr,cudart) $(CUDA_LIBS))),-Xlinker -rpath,$(folder:%/=%))
CUDA_OBJ = $(patsubst %.cu,$(BUILD)/%.o,$(wildcard kernels/cuda/*.cu))

cuda: qwen_cuda.so
ifeq (,$(CUDA_NCCL))
	@echo "qwen_cuda.so is built without NCCL: there is none in $(NCCL_PLACES)"
endif

qwen_cuda.so: $(BUILD)/qwen_cuda.so
	cp $< $@

$(BUILD)/qwen_cuda.so: $(CUDA_OBJ)
	$(NVCC) -shared $(CUDA_CODE) -o $@ $^ $(CUDA_LINK)

# Objects that were built with another toolkit, or for other GPUs, must not be taken for these.
CUDA_STAMP = $(BUILD)/kernels/cuda/toolkit
CUDA_BUILD := $(strip $(NVCC) $(CUDA_FLAGS))
ifneq ($(CUDA_BUILD),$(shell cat $(CUDA_STAMP) 2>/dev/null))
.PHONY: $(CUDA_STAMP)
endif
$(CUDA_STAMP):
	@mkdir -p $(@D)
	@echo '$(CUDA_BUILD)' >$@

$(BUILD)/kernels/cuda/%.o: kernels/cuda/%.cu $(CUDA_STAMP)
	$(NVCC) $(CUDA_FLAGS) -MMD -MP -c -o $@ $<

-include $(CUDA_OBJ:.o=.d)

# Opens the plug-in and lists its devices; no device is fine, a plug-in that cannot be opened is not.
cuda-load: $(BUILD)/qwen_cuda.so $(BUILD)/gpu/devices
	$(BUILD)/gpu/devices $<

# What the GPU gives at most, measured with the same library.
$(BUILD)/gpu/ceilings: test/gpu/ceilings.cu $(CUDA_STAMP)
	@mkdir -p $(@D)
	$(NVCC) $(CUDA_FLAGS) -o $@ $< $(CUDA_LINK)
endif

$(BUILD)/gpu/devices: test/gpu/devices.c kernels/cuda/plugin.h
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -o $@ $< -ldl

# Every operation of a plug-in against the oracle: of the plug-in that QWEN_CUDA_PLUGIN names, on a GPU, or of the one that
# is made of the same files for processors.
GPU_TESTS = $(patsubst test/gpu/%.c,$(BUILD)/gpu/%,$(wildcard test/gpu/test_ops_*.c))

$(BUILD)/gpu/test_ops_%: test/gpu/test_ops_%.c test/gpu/gpu_sets.h $(wildcard test/unit/*.h kernels/*.h) $(BUILD)/libqwen.a
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -o $@ $< $(BUILD)/libqwen.a $(ENGINE_LIBS) -lcmocka

.PHONY: gpu-tests emulated-ops
gpu-tests: $(GPU_TESTS)

emulated-ops: emulated $(GPU_TESTS)
	QWEN_CUDA_PLUGIN=$(BUILD)/emulated/qwen_cuda.so QWEN_EMULATED_GPUS=2 CMOCKA_MESSAGE_OUTPUT=TAP \
		prove -j2 -e '' $(GPU_TESTS)

# All that needs a GPU, and measurements on it. Both say loudly when there is none.
.PHONY: gpucheck gpubench
gpucheck:
	+bash test/gpu/check

gpubench:
	+python3 test/bench/gpu.py

# ---- the CUDA plug-in on a model of CUDA, for machines without a GPU: test/gpu/emulated ----
#
# The plug-in stands beside a copy of the engine, which opens the one in its own folder. What a GPU would answer with a
# fault, or silently do otherwise, ends the program: accesses that are not aligned, shifts that are too wide, indexes beyond
# an array.

EMULATED_CXX ?= c++
EMULATED_CHECKS ?= -fsanitize=alignment,bounds,shift -fno-sanitize-recover=all
EMULATED_FLAGS = -std=gnu++17 -O2 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -fPIC -fvisibility=hidden -pthread \
	-DQWEN_CUDA_EMULATED -Itest/gpu/emulated -I.
EMULATOR_OBJ = $(patsubst %.cpp,$(BUILD)/emulated/%.o,$(filter-out test/gpu/emulated/test_%,$(wildcard test/gpu/emulated/*.cpp)))
EMULATED_TESTS = $(patsubst %.cpp,$(BUILD)/emulated/%.o,$(wildcard test/gpu/emulated/test_*.cpp))
EMULATED_OBJ = $(patsubst %.cu,$(BUILD)/emulated/%.o,$(wildcard kernels/cuda/*.cu))

.PHONY: emulated emulated-selftest
emulated: $(BUILD)/emulated/qwen_cuda.so $(BUILD)/emulated/qwen-engine

$(BUILD)/emulated/qwen-engine: $(BUILD)/qwen-engine
	@mkdir -p $(@D)
	cp $< $@

$(BUILD)/emulated/qwen_cuda.so: $(EMULATED_OBJ) $(EMULATOR_OBJ)
	$(EMULATED_CXX) $(EMULATED_FLAGS) $(EMULATED_CHECKS) -shared -Wl,--no-undefined -o $@ $^

$(BUILD)/emulated/%.o: %.cu
	@mkdir -p $(@D)
	$(EMULATED_CXX) -x c++ $(EMULATED_FLAGS) $(EMULATED_CHECKS) -MMD -MP -c -o $@ $<

$(BUILD)/emulated/%.o: %.cpp
	@mkdir -p $(@D)
	$(EMULATED_CXX) $(EMULATED_FLAGS) -MMD -MP -c -o $@ $<

-include $(EMULATED_OBJ:.o=.d) $(EMULATOR_OBJ:.o=.d) $(EMULATED_TESTS:.o=.d)

$(BUILD)/emulated/test_emulated: $(EMULATED_TESTS) $(EMULATOR_OBJ)
	$(EMULATED_CXX) $(EMULATED_FLAGS) -o $@ $^

emulated-selftest: $(BUILD)/emulated/test_emulated
	prove -e '' $<
	QWEN_EMULATED_ORDER=reverse prove -e '' $<

# What the plug-in's host side does, with its own objects, so that the tests reach what it does not export.
HOST_TESTS = $(patsubst test/gpu/%.cpp,$(BUILD)/emulated/%,$(wildcard test/gpu/test_host*.cpp))

$(HOST_TESTS): $(BUILD)/emulated/%: $(BUILD)/emulated/test/gpu/%.o $(EMULATED_OBJ) $(EMULATOR_OBJ)
	$(EMULATED_CXX) $(EMULATED_FLAGS) $(EMULATED_CHECKS) -o $@ $^ -lcmocka

.PHONY: emulated-host
emulated-host: $(HOST_TESTS)
	CMOCKA_MESSAGE_OUTPUT=TAP prove -e '' $(HOST_TESTS)

-include $(patsubst %,$(BUILD)/emulated/test/gpu/%.d,$(notdir $(HOST_TESTS)))
