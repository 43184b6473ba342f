/*
 * utf8.c
 *	  Reading and checking of UTF-8.
 *
 * Well-formed sequences are those of table 3-7 of the Unicode standard: after
 * E0, ED, F0 and F4 the second byte has a narrower range than 80..BF, which
 * excludes overlong forms, surrogates and what lies beyond U+10FFFF.
 */
#include "utf8.h"

#include <string.h>

/* Bytes that a lead byte asks for in all, or 0; [*low, *high] is the range of the second one. */
static size_t
lead_length(unsigned char lead, unsigned char *low, unsigned char *high)
{
	*low = 0x80;
	*high = 0xBF;
	if (lead < 0x80)
		return 1;
	if (lead < 0xC2 || lead > 0xF4)
		return 0;
	if (lead < 0xE0)
		return 2;
	if (lead < 0xF0)
	{
		if (lead == 0xE0)
			*low = 0xA0;
		if (lead == 0xED)
			*high = 0x9F;
		return 3;
	}
	if (lead == 0xF0)
		*low = 0x90;
	if (lead == 0xF4)
		*high = 0x8F;
	return 4;
}

qwen_utf8_kind
qwen_utf8_step(const unsigned char *p, size_t n, size_t *used)
{
	unsigned char low, high;
	size_t want = lead_length(p[0], &low, &high);

	*used = 1;
	if (want == 0)
		return QWEN_UTF8_INVALID;
	for (; *used < want; (*used)++)
	{
		if (*used == n)
			return QWEN_UTF8_CUT;
		if (p[*used] < low || p[*used] > high)
			return QWEN_UTF8_INVALID;
		low = 0x80;
		high = 0xBF;
	}
	return QWEN_UTF8_CHAR;
}

size_t
qwen_utf8_valid_length(const char *text, size_t len)
{
	const unsigned char *p = (const unsigned char *) text;
	size_t at = 0, used;

	while (at < len)
	{
		uint64_t eight;

		/* Most text has long runs of ASCII: eight bytes at a time. */
		while (len - at >= sizeof(eight))
		{
			memcpy(&eight, p + at, sizeof(eight));
			if (eight & UINT64_C(0x8080808080808080))
				break;
			at += sizeof(eight);
		}
		if (at == len)
			break;
		if (qwen_utf8_step(p + at, len - at, &used) != QWEN_UTF8_CHAR)
			break;
		at += used;
	}
	return at;
}

int32_t
qwen_utf8_decode(const unsigned char *p, size_t *used)
{
	if (p[0] < 0x80)
	{
		*used = 1;
		return p[0];
	}
	if (p[0] < 0xE0)
	{
		*used = 2;
		return (p[0] & 0x1F) << 6 | (p[1] & 0x3F);
	}
	if (p[0] < 0xF0)
	{
		*used = 3;
		return (p[0] & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F);
	}
	*used = 4;
	return (p[0] & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

size_t
qwen_utf8_encode(int32_t cp, unsigned char *out)
{
	if (cp < 0x80)
	{
		out[0] = (unsigned char) cp;
		return 1;
	}
	if (cp < 0x800)
	{
		out[0] = (unsigned char) (0xC0 | cp >> 6);
		out[1] = (unsigned char) (0x80 | (cp & 0x3F));
		return 2;
	}
	if (cp < 0x10000)
	{
		out[0] = (unsigned char) (0xE0 | cp >> 12);
		out[1] = (unsigned char) (0x80 | (cp >> 6 & 0x3F));
		out[2] = (unsigned char) (0x80 | (cp & 0x3F));
		return 3;
	}
	out[0] = (unsigned char) (0xF0 | cp >> 18);
	out[1] = (unsigned char) (0x80 | (cp >> 12 & 0x3F));
	out[2] = (unsigned char) (0x80 | (cp >> 6 & 0x3F));
	out[3] = (unsigned char) (0x80 | (cp & 0x3F));
	return 4;
}
