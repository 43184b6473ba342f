# data.mk: test data that is stored compressed, unpacked beside the tests that read it.
#
# Each archive holds a real tokenizer and the reference's answers for it: tokenizer.json, tokenizer_config.json,
# tokens.jsonl and chats.jsonl.

TOKENIZER_DATA = $(patsubst test/data/tokenizers/%.tar.xz,$(BUILD)/data/tokenizers/%/unpacked,\
	$(wildcard test/data/tokenizers/*.tar.xz))

$(BUILD)/data/tokenizers/%/unpacked: test/data/tokenizers/%.tar.xz
	@mkdir -p $(@D)
	tar -xJf $< -C $(@D)
	@touch $@

$(BUILD)/unit/test_tokenizer $(BUILD)/unit/test_chat: | $(TOKENIZER_DATA)
