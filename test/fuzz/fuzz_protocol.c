/*
 * fuzz_protocol.c
 *	  A REQUEST payload of any bytes: decoded, and when it decodes, prepared
 *	  against the bundled model's tokenizer and chat template.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The engine is opened once; a target that cannot run must not look like one that found nothing. */
static qwen_engine *
engine(void)
{
	static qwen_engine *e;
	const qwen_model_options options = {.path = "test/data/demo-model",
										.device_map = "auto",
										.kernels = "ref",
										.dtype = "auto",
										.max_sequences = 4,
										.step_tokens = 16};
	qwen_error err;

	if (!e && qwen_engine_open(&options, NULL, NULL, &e, &err) != QWEN_OK)
		abort();
	return e;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	qwen_decoded d;
	qwen_sequence *seq;
	qwen_error err;

	if (qwen_request_decode(1, (const char *) data, size, &d, &err) != QWEN_OK)
		return 0;
	if (qwen_engine_prepare(engine(), &d.request, &seq, &err) == QWEN_OK)
		qwen_sequence_free(seq);
	qwen_decoded_free(&d);
	return 0;
}
