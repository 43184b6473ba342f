# engine.mk: the engine, its kernels and their tests. Knows nothing of PostgreSQL.
#
# Portable builds: no -march=native. Each instruction set is one file compiled with its own flags and chosen at run time.

BUILD ?= build
ENGINE_CC ?= cc
ENGINE_OPT ?= -O2 -g
ENGINE_WARN = -std=gnu11 -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes \
	-Wvla -Wno-unused-parameter -Wno-missing-field-initializers
ENGINE_PKGS = jansson libpcre2-8 libutf8proc
ENGINE_CFLAGS = $(ENGINE_OPT) $(ENGINE_WARN) -D_GNU_SOURCE -DPCRE2_CODE_UNIT_WIDTH=8 -pthread -fno-math-errno \
	-I. $(shell pkg-config --cflags $(ENGINE_PKGS)) $(ENGINE_EXTRA)
ENGINE_LIBS = $(shell pkg-config --libs $(ENGINE_PKGS)) -lm -ldl -pthread

ENGINE_SRC = $(wildcard engine/*.c) $(wildcard kernels/*.c kernels/ref/*.c kernels/cpu/*.c)
ENGINE_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(ENGINE_SRC))
ENGINE_LIB_OBJ = $(filter-out $(BUILD)/engine/main.o,$(ENGINE_OBJ))

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

# One set of kernels an instruction set. Contraction and reassociation are wanted there, the rest of -ffast-math is not.
KERNEL_MATH = -O3 -fassociative-math -fno-signed-zeros -fno-trapping-math -freciprocal-math -ffp-contract=fast
$(BUILD)/kernels/cpu/%.o: ENGINE_CFLAGS += $(KERNEL_MATH)
$(BUILD)/kernels/cpu/cpu_avx2.o: ENGINE_CFLAGS += -mavx2 -mfma -mf16c
$(BUILD)/kernels/cpu/cpu_avx512.o: ENGINE_CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# ---- unit tests (cmocka, TAP) ----
UNIT_SRC = $(wildcard test/unit/test_*.c)
UNIT_BIN = $(patsubst test/unit/%.c,$(BUILD)/unit/%,$(UNIT_SRC))

$(BUILD)/unit/%: test/unit/%.c $(BUILD)/libqwen.a
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -o $@ $< $(BUILD)/libqwen.a $(ENGINE_LIBS) -lcmocka

.PHONY: unit
unit: $(UNIT_BIN)
	CMOCKA_MESSAGE_OUTPUT=TAP prove -e '' $(UNIT_BIN)

.PHONY: install-engine
install-engine: qwen-engine
	$(INSTALL_PROGRAM) qwen-engine '$(DESTDIR)$(pkglibdir)/qwen-engine'
	$(MKDIR_P) '$(DESTDIR)$(datadir)/qwen/demo-model'
	$(INSTALL_DATA) $(wildcard test/data/demo-model/*.json test/data/demo-model/*.safetensors) '$(DESTDIR)$(datadir)/qwen/demo-model'
