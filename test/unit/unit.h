/*
 * unit.h
 *	  What cmocka wants included before itself, and the engine's error shown
 *	  when a call that must succeed does not.
 */
#ifndef QWEN_UNIT_H
#define QWEN_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/error.h"

#define assert_ok(call, err)                                                                                           \
	do                                                                                                                 \
	{                                                                                                                  \
		if ((call) != QWEN_OK)                                                                                         \
			fail_msg("%s: %s (%s)", #call, (err).message, (err).detail);                                               \
	} while (0)

#endif
