/*
 * config_json.h
 *	  Checked reading of single values from a configuration file.
 *
 * A key that is absent or null gives the default.  A value of another type or
 * out of range is QWEN_CORRUPT and names the key.  Numbers may be written as
 * integers or as reals; an integer key takes a real that is whole.
 */
#ifndef QWEN_CONFIG_JSON_H
#define QWEN_CONFIG_JSON_H

#include <jansson.h>
#include <stdint.h>

#include "error.h"

/*
 * Parses text[0..len) into an object.  The words NaN and Infinity, which Python writes, are read as strings: harmless
 * in keys that are not used, and refused with the key's name in those that are.
 */
qwen_status qwen_config_load_json(const char *file, const char *text, size_t len, json_t **out, qwen_error *err);

qwen_status qwen_config_int(const json_t *object, const char *key, int32_t fallback, int32_t min, int32_t max,
							int32_t *out, qwen_error *err);
qwen_status qwen_config_number(const json_t *object, const char *key, double fallback, double min, double max,
							   double *out, qwen_error *err);
qwen_status qwen_config_bool(const json_t *object, const char *key, bool fallback, bool *out, qwen_error *err);

/* Copies what a message may show of a file's text: cut to size, control and non-ASCII bytes replaced. */
void qwen_config_printable(char *out, size_t size, const char *text);

#endif
