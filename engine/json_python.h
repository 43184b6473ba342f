/*
 * json_python.h
 *	  JSON as the reference's template filter "tojson" writes it.
 */
#ifndef QWEN_JSON_PYTHON_H
#define QWEN_JSON_PYTHON_H

#include <jansson.h>

#include "buffer.h"

/*
 * Appends a value: ", " and ": " as separators, keys in the order of the input, characters beyond ASCII as they are,
 * and numbers as Python prints them.  False when memory is short.
 */
bool qwen_json_python(const json_t *value, qwen_bytes *out);

#endif
