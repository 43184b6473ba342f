/*
 * utf8.h
 *	  Reading and checking of UTF-8, shared by the tokenizer's phases.
 */
#ifndef QWEN_UTF8_H
#define QWEN_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum qwen_utf8_kind
{
	QWEN_UTF8_CHAR,    /* a whole character */
	QWEN_UTF8_INVALID, /* can never become a character: one U+FFFD stands for it */
	QWEN_UTF8_CUT      /* valid so far, but the text ends inside the character */
} qwen_utf8_kind;

/*
 * Looks at the first character of p[0..n), n > 0.  *used receives its bytes; of an invalid or cut one, the bytes of the
 * maximal subpart (Unicode 3.9, "Substitution of Maximal Subparts"), which is what one U+FFFD replaces.
 */
qwen_utf8_kind qwen_utf8_step(const unsigned char *p, size_t n, size_t *used);

/* The offset of the first byte that is not valid UTF-8, or len. */
size_t qwen_utf8_valid_length(const char *text, size_t len);

/* The code point of the valid character at p; *used receives its 1 to 4 bytes. */
int32_t qwen_utf8_decode(const unsigned char *p, size_t *used);

/* Writes a code point (not a surrogate, at most U+10FFFF); returns the 1 to 4 bytes. */
size_t qwen_utf8_encode(int32_t cp, unsigned char *out);

#endif
