/*
 * test_safetensors.c
 *	  Headers, valid and not; files, single and sharded; files that change
 *	  while they are read.
 */
#include "unit.h"

#include "engine/safetensors.h"
#include "scratch.h"

#define A "\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]}"
#define B "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}"

static qwen_status
parse(const char *header, uint64_t data_bytes, qwen_tensor_list *out, qwen_error *err)
{
	/* a copy of the exact size, so that a read beyond the end is seen by a sanitizer */
	size_t len = strlen(header);
	char *copy = malloc(len ? len : 1);
	qwen_status rc;

	assert_non_null(copy);
	memcpy(copy, header, len);
	memset(out, 0, sizeof(*out));
	rc = qwen_safetensors_parse("file", copy, len, data_bytes, out, err);
	free(copy);
	return rc;
}

static void
valid_headers_are_read(void **state)
{
	static const struct
	{
		const char *header;
		uint64_t bytes;
		size_t n;
	} cases[] = {
		{"{}", 0, 0},
		{"{" A "," B "}", 20, 2},
		{"{" B "," A "}      ", 20, 2},
		{"{\"__metadata__\":{\"format\":\"pt\",\"x\":\"\\u00e9\\ud83d\\ude42\"}," A "}", 12, 1},
		{"{ \"s\" : { \"shape\" : [ ] , \"dtype\" : \"F32\" , \"data_offsets\" : [ 0 , 4 ] } }", 4, 1},
		{"{\"e\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[0,0]}," A "}", 12, 2},
		{"{\"q\":{\"dtype\":\"F4\",\"shape\":[8],\"data_offsets\":[0,4]}}", 4, 1},
		{"{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"more\":{\"a\":[1.5e3,true,null,\"t\"]}}}", 1,
		 1},
	};
	qwen_tensor_list list;
	qwen_error err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		assert_ok(parse(cases[i].header, cases[i].bytes, &list, &err), err);
		assert_int_equal(list.n, cases[i].n);
		qwen_tensor_list_free(&list);
	}
	assert_ok(parse("{" B "," A "}", 20, &list, &err), err);
	assert_string_equal(list.items[0].name, "a"); /* sorted by name */
	assert_string_equal(list.items[0].dtype, "BF16");
	assert_int_equal(list.items[0].rank, 2);
	assert_int_equal(list.items[0].shape[1], 3);
	assert_int_equal(list.items[1].begin, 12);
	qwen_tensor_list_free(&list);
}

static void
invalid_headers_are_refused(void **state)
{
#define ENTRY(dtype, shape, offsets) "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
	static const struct
	{
		const char *header;
		uint64_t bytes;
		const char *detail;
	} cases[] = {
		{"", 0, "brace"},
		{" {}", 0, "brace"},
		{"[]", 0, "brace"},
		{"{", 0, "string is missing"},
		{"{" A, 12, "bracket is missing"},
		{"{" A ",}", 12, "string is missing"},
		{"{" A "} x", 12, "follows"},
		{"{" A "}\n", 12, "follows"},
		{"{" A "," A "}", 12, "overlaps"},
		{"{" A ",\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}}", 20, "twice"},
		{"{\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[12,13]}," A "}", 13, "twice"},
		{"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
		{"{\"x\":[]}", 0, "object is missing"},
		{"{\"x\":{}}", 0, "missing"},
		{"{\"x\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "twice"},
		{ENTRY("\"F33\"", "[1]", "[0,4]"), 4, "dtype"},
		{ENTRY("\"F32\"", "[-1]", "[0,4]"), 4, "whole number"},
		{ENTRY("\"F32\"", "[01]", "[0,4]"), 4, "whole number"},
		{ENTRY("\"F32\"", "[1.0]", "[0,4]"), 4, "list"},
		{ENTRY("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "too long"},
		{ENTRY("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0, "overflow"},
		{ENTRY("\"F32\"", "[576460752303423488]", "[0,0]"), 0, "overflow"},
		{ENTRY("\"F32\"", "[18446744073709551616]", "[0,4]"), 4, "too large"},
		{ENTRY("\"F32\"", "[1]", "[0,5]"), 5, "do not match"},
		{ENTRY("\"F32\"", "[1]", "[4,0]"), 4, "ascending"},
		{ENTRY("\"F32\"", "[1]", "[0]"), 4, "ascending"},
		{ENTRY("\"F32\"", "[1]", "[0,4,8]"), 4, "too long"},
		{ENTRY("\"F4\"", "[3]", "[0,1]"), 1, "do not match"},
		{ENTRY("\"F32\"", "[1]", "[4,8]"), 8, "hole"},
		{ENTRY("\"F32\"", "[1]", "[0,4]"), 8, "need 4 bytes, but 8"},
		{ENTRY("\"F32\"", "[1]", "[0,4]"), 3, "need 4 bytes, but 3"},
		{"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[13,21]}}", 21, "hole"},
		{"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16, "overlaps"},
		{"{\"\xff\":{}}", 0, "invalid character"},
		{"{\"\\ud800\":{}}", 0, "invalid character"},
		{"{\"\\ud800\\u0041\":{}}", 0, "invalid character"},
		{"{\"\\u0000\":{}}", 0, "invalid character"},
		{"{\"\\q\":{}}", 0, "invalid character"},
		{"{\"a", 0, "does not end"},
		{"{\"a\\", 0, "invalid character"},
		{"{\"x\":{\"more\":[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]}}", 0, "nested"},
	};
#undef ENTRY
	qwen_tensor_list list;
	qwen_error err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		if (parse(cases[i].header, cases[i].bytes, &list, &err) != QWEN_CORRUPT)
			fail_msg("accepted: %s", cases[i].header);
		if (!strstr(err.detail, cases[i].detail))
			fail_msg("%s: \"%s\", not \"%s\"", cases[i].header, err.detail, cases[i].detail);
		qwen_tensor_list_free(&list);
	}
}

static void
long_names_are_refused(void **state)
{
	char header[2048];
	qwen_tensor_list list;
	qwen_error err;

	snprintf(header, sizeof(header), "{\"%0*d\":{}}", QWEN_TENSOR_MAX_NAME, 0);
	assert_int_equal(parse(header, 0, &list, &err), QWEN_CORRUPT);
	assert_non_null(strstr(err.detail, "too long"));
	qwen_tensor_list_free(&list);
}

static void
lengths_are_compared_with_the_file(void **state)
{
	static const struct
	{
		const char *bytes;
		size_t len;
	} cases[] = {
		{"", 0},
		{"1234567", 7},
		{"\3\0\0\0\0\0\0\0{}", 10},
		{"\377\377\377\377\377\377\377\377{}", 10},
		{"\1\341\365\5\0\0\0\0{}", 10},
	};
	scratch s;
	qwen_checkpoint *c;
	qwen_error err;

	scratch_open(&s);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		scratch_write(&s, "model.safetensors", cases[i].bytes, cases[i].len);
		assert_int_equal(qwen_checkpoint_open(s.dir, &c, &err), QWEN_CORRUPT);
	}
	scratch_close(&s);
}

static void
tensors_are_read_in_ranges(void **state)
{
	scratch s;
	qwen_checkpoint *c;
	qwen_error err;
	unsigned char bytes[8];
	const qwen_tensor *b;

	scratch_open(&s);
	scratch_safetensors(&s, "model.safetensors", "{" A "," B "}", 20);
	assert_ok(qwen_checkpoint_open(s.dir, &c, &err), err);
	b = &qwen_checkpoint_tensors(c)->items[1];
	assert_ok(qwen_checkpoint_read(c, b, 2, bytes, 6, &err), err);
	for (int i = 0; i < 6; i++)
		assert_int_equal(bytes[i], 14 + i);
	assert_int_equal(qwen_checkpoint_read(c, b, 3, bytes, 6, &err), QWEN_INTERNAL);
	assert_int_equal(qwen_checkpoint_read(c, b, UINT64_MAX, bytes, 2, &err), QWEN_INTERNAL);
	assert_ok(qwen_checkpoint_verify(c, &err), err);
	qwen_checkpoint_close(c);
	scratch_close(&s);
}

static void
a_file_that_shrinks_is_named_with_the_byte(void **state)
{
	scratch s;
	qwen_checkpoint *c;
	qwen_error err;
	unsigned char bytes[12];
	char path[PATH_MAX], number[32];
	long header = 8 + (long) strlen("{" A "}");

	scratch_open(&s);
	scratch_safetensors(&s, "model.safetensors", "{" A "}", 12);
	assert_ok(qwen_checkpoint_open(s.dir, &c, &err), err);
	assert_int_equal(truncate(scratch_path(&s, "model.safetensors", path), header + 5), 0);
	assert_int_equal(qwen_checkpoint_read(c, &qwen_checkpoint_tensors(c)->items[0], 0, bytes, 12, &err), QWEN_IO);
	assert_non_null(strstr(err.message, "model.safetensors"));
	snprintf(number, sizeof(number), "byte %ld", header + 5);
	assert_non_null(strstr(err.detail, number));
	assert_int_equal(qwen_checkpoint_verify(c, &err), QWEN_IO);
	qwen_checkpoint_close(c);
	scratch_close(&s);
}

/* ---- sharded ---- */

static qwen_status
open_index(const scratch *s, const char *index, qwen_error *err)
{
	qwen_checkpoint *c;
	qwen_status rc;

	scratch_write(s, "model.safetensors.index.json", index, strlen(index));
	rc = qwen_checkpoint_open(s->dir, &c, err);
	if (rc == QWEN_OK)
		qwen_checkpoint_close(c);
	return rc;
}

static void
shards_are_checked_against_their_index(void **state)
{
	static const struct
	{
		const char *index;
		qwen_status status;
	} cases[] = {
		{"{\"weight_map\":{\"a\":\"1.safetensors\",\"z\":\"2.safetensors\"}}", QWEN_OK},
		{"{\"metadata\":{\"total_size\":7},\"weight_map\":{\"a\":\"1.safetensors\"}}", QWEN_OK},
		{"{\"weight_map\":{\"a\":\"2.safetensors\",\"z\":\"1.safetensors\"}}", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":\"1.safetensors\",\"y\":\"2.safetensors\"}}", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}}", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":\"1.safetensors\",\"z\":\"copy.safetensors\"}}", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":\"../1.safetensors\"}}", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":\"..\"}}", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":\"\"}}", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":3}}", QWEN_CORRUPT},
		{"{\"weight_map\":{}}", QWEN_CORRUPT},
		{"{}", QWEN_CORRUPT},
		{"{", QWEN_CORRUPT},
		{"{\"weight_map\":{\"a\":\"3.safetensors\"}}", QWEN_NOT_FOUND},
	};
	scratch s;
	qwen_error err;

	scratch_open(&s);
	scratch_safetensors(&s, "1.safetensors", "{" A "}", 12);
	scratch_safetensors(&s, "2.safetensors", "{\"z\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
	/* holds tensor "a" once more */
	scratch_safetensors(&s, "copy.safetensors",
						"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
						"\"z\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
						2);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		if (open_index(&s, cases[i].index, &err) != cases[i].status)
			fail_msg("%s: status is not %d", cases[i].index, cases[i].status);
	scratch_close(&s);
}

static void
a_folder_without_weights_says_so(void **state)
{
	scratch s;
	qwen_checkpoint *c;
	qwen_error err;

	scratch_open(&s);
	assert_int_equal(qwen_checkpoint_open(s.dir, &c, &err), QWEN_NOT_FOUND);
	assert_non_null(strstr(err.detail, "model.safetensors.index.json"));
	assert_non_null(strstr(err.hint, "qwen.model"));
	scratch_close(&s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(valid_headers_are_read),
		cmocka_unit_test(invalid_headers_are_refused),
		cmocka_unit_test(long_names_are_refused),
		cmocka_unit_test(lengths_are_compared_with_the_file),
		cmocka_unit_test(tensors_are_read_in_ranges),
		cmocka_unit_test(a_file_that_shrinks_is_named_with_the_byte),
		cmocka_unit_test(shards_are_checked_against_their_index),
		cmocka_unit_test(a_folder_without_weights_says_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
