/*
 * config_rope.c
 *	  RoPE and YaRN: reading the parameters, and the table of cosines and
 *	  sines made from them.  Formulas: qwen-models.md 4.
 *
 * Two places are in use: rope_theta and rope_scaling at the top of older
 * files, and an object rope_parameters in newer ones, which wins.  The type
 * is spelled rope_type or type.
 */
#include "config_rope.h"

#include <math.h>
#include <string.h>

#include "../kernels/kernels.h"
#include "config_json.h"

static const double two_pi = 6.283185307179586476925286766559;

/* value comes from the file. */
static qwen_status
refuse_rope(const char *what, const char *value, qwen_error *err)
{
	char shown[64];

	qwen_config_printable(shown, sizeof(shown), value);
	qwen_fail(err, QWEN_UNSUPPORTED, "config.json has %s %s, which is not supported", what, shown);
	return qwen_fail_hint(err, "Supported are rope types default and yarn over whole heads.");
}

/* g(s, m) of the spec: how much attention grows with the scaling factor. */
static double
yarn_mscale(double factor, double mscale)
{
	return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

/* attention_factor: explicit, or from mscale and mscale_all_dim, or from the factor. */
static qwen_status
parse_attention_factor(const json_t *rope, qwen_config *out, qwen_error *err)
{
	double explicit_factor, mscale, mscale_all_dim;
	qwen_status rc;

	if ((rc = qwen_config_number(rope, "attention_factor", 0, 1e-3, 1e3, &explicit_factor, err)) != QWEN_OK ||
		(rc = qwen_config_number(rope, "mscale", 0, 0, 100, &mscale, err)) != QWEN_OK ||
		(rc = qwen_config_number(rope, "mscale_all_dim", 0, 0, 100, &mscale_all_dim, err)) != QWEN_OK)
		return rc;
	if (explicit_factor > 0)
		out->yarn_attention_factor = explicit_factor;
	else if (mscale > 0 && mscale_all_dim > 0)
		out->yarn_attention_factor =
			yarn_mscale(out->yarn_factor, mscale) / yarn_mscale(out->yarn_factor, mscale_all_dim);
	else
		out->yarn_attention_factor = yarn_mscale(out->yarn_factor, 1);
	return QWEN_OK;
}

/*
 * original_max_position_embeddings falls back to max_position_embeddings, as in the reference; factor has no default,
 * since no value would be right.
 */
static qwen_status
parse_yarn(const json_t *rope, qwen_config *out, qwen_error *err)
{
	const json_t *factor = json_object_get(rope, "factor");
	double positions = out->max_position_embeddings;
	qwen_status rc;

	if (!factor || json_is_null(factor))
		return qwen_fail(err, QWEN_CORRUPT, "config.json: rope scaling of type yarn has no factor");
	out->yarn = true;
	if ((rc = qwen_config_number(rope, "factor", 1, 1e-3, 1e4, &out->yarn_factor, err)) != QWEN_OK ||
		(rc = qwen_config_number(rope, "original_max_position_embeddings", positions, 1, 1 << 24, &out->yarn_original,
								 err)) != QWEN_OK ||
		(rc = qwen_config_number(rope, "beta_fast", 32, 1e-3, 1e6, &out->yarn_beta_fast, err)) != QWEN_OK ||
		(rc = qwen_config_number(rope, "beta_slow", 1, 1e-3, 1e6, &out->yarn_beta_slow, err)) != QWEN_OK ||
		(rc = qwen_config_bool(rope, "truncate", true, &out->yarn_truncate, err)) != QWEN_OK)
		return rc;
	return parse_attention_factor(rope, out, err);
}

/* Scaling by rope's own description; NULL or null: none. */
static qwen_status
parse_scaling(const json_t *rope, qwen_config *out, qwen_error *err)
{
	const json_t *type = json_object_get(rope, "rope_type");
	const char *name;

	if (!rope || json_is_null(rope))
		return QWEN_OK;
	if (!json_is_object(rope))
		return qwen_fail(err, QWEN_CORRUPT, "config.json: rope scaling must be an object or null");
	if (!type || json_is_null(type))
		type = json_object_get(rope, "type");
	name = json_string_value(type);
	if (json_object_get(rope, "mrope_section"))
		return refuse_rope("rope sections", "(mrope_section)", err);
	if ((!type || json_is_null(type)) && !json_object_get(rope, "factor"))
		return QWEN_OK; /* rope_parameters with nothing but rope_theta */
	if (name && !strcmp(name, "yarn"))
		return parse_yarn(rope, out, err);
	if (name && !strcmp(name, "default"))
		return QWEN_OK;
	return refuse_rope("rope type", name ? name : "of no name", err);
}

/* Only whole heads are turned in these families. */
static qwen_status
check_partial(const json_t *object, qwen_error *err)
{
	double partial;
	qwen_status rc = qwen_config_number(object, "partial_rotary_factor", 1, 0, 1, &partial, err);

	return rc == QWEN_OK && partial != 1 ? refuse_rope("partial_rotary_factor", "below 1", err) : rc;
}

qwen_status
qwen_config_parse_rope(const json_t *root, qwen_config *out, qwen_error *err)
{
	const json_t *rope = json_object_get(root, "rope_parameters");
	bool newer = rope && !json_is_null(rope);
	double legacy_theta;
	qwen_status rc;

	if ((rc = qwen_config_number(root, "rope_theta", 10000, 1.001, 1e15, &legacy_theta, err)) != QWEN_OK ||
		(rc = check_partial(root, err)) != QWEN_OK)
		return rc;
	out->rope_theta = legacy_theta;
	if (!newer)
		return parse_scaling(json_object_get(root, "rope_scaling"), out, err);
	if (!json_is_object(rope))
		return qwen_fail(err, QWEN_CORRUPT, "config.json: rope_parameters must be an object or null");
	if ((rc = qwen_config_number(rope, "rope_theta", legacy_theta, 1.001, 1e15, &out->rope_theta, err)) != QWEN_OK ||
		(rc = check_partial(rope, err)) != QWEN_OK)
		return rc;
	return parse_scaling(rope, out, err);
}

/* The dimension at which a wave makes n turns over the original length. */
static double
yarn_correction(const qwen_config *c, double turns)
{
	return c->head_dim * log(c->yarn_original / (turns * two_pi)) / (2 * log(c->rope_theta));
}

/* How far dimension i is scaled: 0 not at all, 1 by the whole factor. */
static double
yarn_ramp(double low, double high, int i)
{
	double x = (i - low) / (high - low);

	return x < 0 ? 0 : x > 1 ? 1 : x;
}

void
qwen_rope_frequencies(const qwen_config *c, double *inv_freq)
{
	double low = 0, high = 0;

	if (c->yarn)
	{
		low = yarn_correction(c, c->yarn_beta_fast);
		high = yarn_correction(c, c->yarn_beta_slow);
		if (c->yarn_truncate)
		{
			low = floor(low);
			high = ceil(high);
		}
		low = fmax(low, 0);
		high = fmin(high, c->head_dim - 1);
		if (low == high)
			high += 0.001;
	}
	for (int i = 0; i < c->head_dim / 2; i++)
	{
		double ramp = c->yarn ? yarn_ramp(low, high, i) : 0;
		double scale = c->yarn ? (1 - ramp) + ramp / c->yarn_factor : 1;

		inv_freq[i] = pow(c->rope_theta, -2.0 * i / c->head_dim) * scale;
	}
}

/* Angles in double: a float would lose whole turns at positions beyond some hundred thousand. */
void
qwen_rope_rows(const qwen_config *c, int first, int n, float *rope)
{
	double inv_freq[QWEN_MAX_HEAD_DIM / 2];
	double scale = c->yarn ? c->yarn_attention_factor : 1;
	int half = c->head_dim / 2;

	qwen_rope_frequencies(c, inv_freq);
	for (int p = 0; p < n; p++)
	{
		float *row = rope + (size_t) p * (size_t) c->head_dim;

		for (int i = 0; i < half; i++)
		{
			row[i] = (float) (cos((first + p) * inv_freq[i]) * scale);
			row[half + i] = (float) (sin((first + p) * inv_freq[i]) * scale);
		}
	}
}
