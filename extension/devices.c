/*-------------------------------------------------------------------------
 *
 * devices.c
 *	  The functions under the views qwen_devices and qwen_device_map.
 *
 * Both show what the engine says, while it loads and with every heartbeat; a
 * server without an engine has no devices.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "utils/builtins.h"

#include "qwen.h"

/* Columns of qwen_devices. */
enum
{
	DEVICES_NAME,
	DEVICES_KIND,
	DEVICES_LAYERS,
	DEVICES_PLANNED, /* the first of the bytes */
	DEVICES_WEIGHTS,
	DEVICES_LOADED,
	DEVICES_KV,
	DEVICES_WORKSPACE,
	DEVICES_USED,
	DEVICES_PEAK,
	DEVICES_FREE,
	DEVICES_BUDGET,
	DEVICES_TOTAL,
	DEVICES_COLUMNS
};

/* Columns of qwen_device_map. */
enum
{
	MAP_ORDINAL,
	MAP_ITEM,
	MAP_LAYER,
	MAP_DEVICE,
	MAP_WEIGHTS,
	MAP_KV,
	MAP_COLUMNS
};

static void put_device(ReturnSetInfo *rsi, const qwen_device_state *device);
static void put_item(ReturnSetInfo *rsi, const qwen_devices *devices, int ordinal);
static void describe_item(const qwen_devices *devices, int ordinal, Datum *columns, bool *nulls);

PG_FUNCTION_INFO_V1(qwen_devices_rows);
PG_FUNCTION_INFO_V1(qwen_device_map_rows);

Datum
qwen_devices_rows(PG_FUNCTION_ARGS)
{
	qwen_devices *devices = palloc(sizeof(*devices));

	InitMaterializedSRF(fcinfo, 0);
	qwen_get_devices(devices);
	for (int i = 0; i < devices->n_devices; i++)
		put_device((ReturnSetInfo *) fcinfo->resultinfo, &devices->devices[i]);
	return (Datum) 0;
}

static void
put_device(ReturnSetInfo *rsi, const qwen_device_state *device)
{
	const uint64 bytes[] = {
		device->planned_bytes,   device->weights_bytes, device->loaded_bytes, device->kv_bytes,
		device->workspace_bytes, device->used_bytes,    device->peak_bytes,   device->free_bytes,
		device->budget_bytes,    device->total_bytes,
	};
	Datum columns[DEVICES_COLUMNS];
	bool nulls[DEVICES_COLUMNS] = {false};

	StaticAssertStmt(lengthof(bytes) == DEVICES_COLUMNS - DEVICES_PLANNED, "a value for each column");
	columns[DEVICES_NAME] = CStringGetTextDatum(device->name);
	columns[DEVICES_KIND] = CStringGetTextDatum(device->kind);
	columns[DEVICES_LAYERS] = Int32GetDatum(device->n_layers);
	for (int i = 0; i < lengthof(bytes); i++)
		columns[DEVICES_PLANNED + i] = Int64GetDatum((int64) bytes[i]);
	tuplestore_putvalues(rsi->setResult, rsi->setDesc, columns, nulls);
}

/* Items in the order of the forward pass: the embedding, the layers, the head. */
Datum
qwen_device_map_rows(PG_FUNCTION_ARGS)
{
	qwen_devices *devices = palloc(sizeof(*devices));

	InitMaterializedSRF(fcinfo, 0);
	qwen_get_devices(devices);
	for (int i = 0; devices->n_devices > 0 && i < devices->n_layers + 2; i++)
		put_item((ReturnSetInfo *) fcinfo->resultinfo, devices, i);
	return (Datum) 0;
}

/* A row for each device that has the item or a shard of it. */
static void
put_item(ReturnSetInfo *rsi, const qwen_devices *devices, int ordinal)
{
	bool embed = ordinal == 0, head = ordinal == devices->n_layers + 1;
	int stage = embed ? devices->embed_stage : head ? devices->head_stage : devices->layer_stage[ordinal - 1];
	Datum columns[MAP_COLUMNS];
	bool nulls[MAP_COLUMNS] = {false};

	describe_item(devices, ordinal, columns, nulls);
	for (int i = 0; i < devices->n_devices; i++)
	{
		const qwen_device_state *device = &devices->devices[i];

		if (device->stage != stage)
			continue;
		columns[MAP_DEVICE] = CStringGetTextDatum(device->name);
		columns[MAP_WEIGHTS] = Int64GetDatum((int64) (embed  ? device->embed_bytes
													  : head ? device->head_bytes
															 : device->layer_bytes));
		columns[MAP_KV] = Int64GetDatum(embed || head ? 0 : (int64) device->layer_kv_bytes);
		tuplestore_putvalues(rsi->setResult, rsi->setDesc, columns, nulls);
	}
}

static void
describe_item(const qwen_devices *devices, int ordinal, Datum *columns, bool *nulls)
{
	bool embed = ordinal == 0, head = ordinal == devices->n_layers + 1;

	columns[MAP_ORDINAL] = Int32GetDatum(ordinal);
	columns[MAP_ITEM] = CStringGetTextDatum(embed ? "embed" : head ? "head" : "layer");
	columns[MAP_LAYER] = Int32GetDatum(ordinal - 1);
	nulls[MAP_LAYER] = embed || head;
}
