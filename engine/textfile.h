/*
 * textfile.h
 *	  Reading a whole small file of a model folder, and JSON from one.
 */
#ifndef QWEN_TEXTFILE_H
#define QWEN_TEXTFILE_H

#include <jansson.h>

#include "buffer.h"
#include "error.h"

/*
 * Appends the content of dir/name to *out, which the caller frees in any case.  QWEN_NOT_FOUND when there is no such
 * file, QWEN_TOO_LONG when it has more than max bytes.
 */
qwen_status qwen_read_text_file(const char *dir, const char *name, size_t max, qwen_bytes *out, qwen_error *err);

/*
 * Parses the text of a tokenizer's file, which must be an object.  Keys that occur twice are refused, so that no token
 * hides behind another.  Whole numbers beyond 64 bits are read as reals: Python's "no limit" is written with 31 digits.
 * *out is a new reference, or NULL.
 */
qwen_status qwen_parse_json_object(const char *file, const char *text, size_t len, json_t **out, qwen_error *err);

#endif
