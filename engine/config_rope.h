/*
 * config_rope.h
 *	  The rotary part of a configuration, and the table made from it.
 */
#ifndef QWEN_CONFIG_ROPE_H
#define QWEN_CONFIG_ROPE_H

#include <jansson.h>

#include "config.h"

/* Reads rope_theta, rope_scaling and rope_parameters. Sizes and positions of *out are already known. */
qwen_status qwen_config_parse_rope(const json_t *root, qwen_config *out, qwen_error *err);

/* Inverse frequencies [head_dim / 2], scaling applied. */
void qwen_rope_frequencies(const qwen_config *config, double *inv_freq);

/* rope[n, head_dim] for positions first .. first + n: cos [head_dim / 2] | sin [head_dim / 2], scaling applied. */
void qwen_rope_rows(const qwen_config *config, int first, int n, float *rope);

#endif
