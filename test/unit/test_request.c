/*
 * test_request.c
 *	  Decoding of REQUEST payloads: good ones arrive whole, and every cut or
 *	  bent one is refused.
 */
#include "unit.h"

#include "engine/request.h"

typedef struct payload
{
	char bytes[1024];
	size_t len;
} payload;

static payload
begin(uint32_t kind)
{
	qwen_request_header head = {.protocol = QWEN_PROTOCOL, .kind = kind, .max_tokens = 3, .skip = 5};
	payload p = {.len = sizeof(head)};

	memcpy(p.bytes, &head, sizeof(head));
	return p;
}

static void
add(payload *p, uint32_t tag, const void *data, size_t len)
{
	qwen_request_header head;

	memcpy(&head, p->bytes, sizeof(head));
	head.n_fields++;
	memcpy(p->bytes, &head, sizeof(head));
	qwen_field_put(p->bytes + p->len, tag, data, (uint32_t) len);
	p->len += qwen_field_size(len);
}

/* Decodes from an exact heap copy, so that a sanitizer sees every byte read too far. */
static qwen_status
decode(const payload *p, size_t len, qwen_decoded *d, char **copy)
{
	qwen_error err;

	*copy = malloc(len ? len : 1);
	memcpy(*copy, p->bytes, len);
	return qwen_request_decode(77, *copy, len, d, &err);
}

static void
a_request_arrives_whole(void **state)
{
	const int32_t ids[] = {1, 2, 3};
	payload p = begin(QWEN_KIND_CHAT);
	qwen_decoded d;
	char *copy;

	add(&p, QWEN_FIELD_MESSAGES, "[{\"role\":\"user\"}]", 17);
	add(&p, QWEN_FIELD_TOOLS, "[]", 2);
	add(&p, QWEN_FIELD_SYSTEM, "be brief", 8);
	add(&p, QWEN_FIELD_STOP, "one", 3);
	add(&p, QWEN_FIELD_STOP, "two!", 4);
	assert_int_equal(decode(&p, p.len, &d, &copy), QWEN_OK);
	assert_int_equal(d.request.id, 77);
	assert_int_equal(d.request.head.skip, 5);
	assert_int_equal(json_array_size(d.request.messages), 1);
	assert_int_equal(json_array_size(d.request.tools), 0);
	assert_memory_equal(d.request.system, "be brief", 8);
	assert_int_equal(d.request.n_stop, 2);
	assert_int_equal(d.request.stop_len[1], 4);
	assert_memory_equal(d.request.stop[1], "two!", 4);
	qwen_decoded_free(&d);
	free(copy);

	p = begin(QWEN_KIND_DETOKENIZE);
	add(&p, QWEN_FIELD_PROMPT, "odd", 3); /* the ids start at an odd address */
	add(&p, QWEN_FIELD_IDS, ids, sizeof(ids));
	assert_int_equal(decode(&p, p.len, &d, &copy), QWEN_OK);
	assert_int_equal(d.request.n_ids, 3);
	assert_int_equal(d.request.ids[2], 3);
	qwen_decoded_free(&d);
	free(copy);
}

static void
every_cut_is_refused(void **state)
{
	payload p = begin(QWEN_KIND_CHAT);
	qwen_decoded d;
	char *copy;

	add(&p, QWEN_FIELD_MESSAGES, "[]", 2);
	add(&p, QWEN_FIELD_STOP, "stop", 4);
	for (size_t len = 0; len < p.len; len++)
	{
		assert_int_equal(decode(&p, len, &d, &copy), QWEN_INVALID);
		free(copy);
	}
	p.bytes[p.len] = 'x';
	assert_int_equal(decode(&p, p.len + 1, &d, &copy), QWEN_INVALID);
	free(copy);
}

static void
assert_refused(const payload *p)
{
	qwen_decoded d;
	char *copy;

	assert_int_equal(decode(p, p->len, &d, &copy), QWEN_INVALID);
	free(copy);
}

static void
nonsense_is_refused(void **state)
{
	payload p = begin(QWEN_KIND_GENERATE);
	uint32_t huge = UINT32_MAX;

	assert_refused(&p); /* no prompt */
	add(&p, 99, "x", 1);
	assert_refused(&p); /* unknown field */

	p = begin(QWEN_KIND_GENERATE);
	add(&p, QWEN_FIELD_PROMPT, "hi", 2);
	memcpy(p.bytes + sizeof(qwen_request_header) + sizeof(uint32_t), &huge, sizeof(huge));
	assert_refused(&p); /* a field longer than the payload */

	p = begin(QWEN_KIND_CHAT);
	add(&p, QWEN_FIELD_MESSAGES, "{}", 2);
	assert_refused(&p); /* an object is no array */
	p = begin(QWEN_KIND_CHAT);
	add(&p, QWEN_FIELD_MESSAGES, "[", 1);
	assert_refused(&p);
	p = begin(QWEN_KIND_DETOKENIZE);
	add(&p, QWEN_FIELD_IDS, "abcde", 5);
	assert_refused(&p); /* not whole ids */
	p = begin(1234);
	add(&p, QWEN_FIELD_PROMPT, "hi", 2);
	assert_refused(&p); /* unknown kind */
}

static void
stop_strings_have_a_limit(void **state)
{
	payload p = begin(QWEN_KIND_GENERATE);

	add(&p, QWEN_FIELD_PROMPT, "hi", 2);
	for (int i = 0; i < 65; i++)
		add(&p, QWEN_FIELD_STOP, "s", 1);
	assert_refused(&p);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_request_arrives_whole),
		cmocka_unit_test(every_cut_is_refused),
		cmocka_unit_test(nonsense_is_refused),
		cmocka_unit_test(stop_strings_have_a_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
