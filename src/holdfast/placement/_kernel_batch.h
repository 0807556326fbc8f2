/* Many keys in one call: gathered with the GIL, hashed and looked up without it. */

#ifndef HOLDFAST_KERNEL_BATCH_H
#define HOLDFAST_KERNEL_BATCH_H

#include "_kernel_base.h"
#include "_kernel_hash.h"
#include "_kernel_table.h"

enum {
    BLOCK = 256,    /* integers that are hashed, then looked up together */
    FEW = 1 << 10,  /* keys: up to so many the GIL is kept, as getting it back may take 5 ms */
    MUCH = 1 << 18, /* bytes of keys: up to so many likewise */
    MANY = 1 << 20  /* integers: after so many we look whether somebody pressed Ctrl-C */
};

typedef struct {
    uint32_t *slot;
    Py_ssize_t count, room;
} Slots;

static int
make_room(Slots *slots, Py_ssize_t more)
{
    Py_ssize_t room = slots->count + more;
    if (room > slots->room) {
        room = room < slots->room * 2 ? slots->room * 2 : room;
        uint32_t *slot = PyMem_Realloc(slots->slot, (size_t)room * sizeof *slot);
        if (slot == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        slots->slot = slot;
        slots->room = room;
    }
    return 0;
}

/* -- any keys with any finder: one at a time */

static int
add_one(const Table *table, PyObject *key, Slots *slots)
{
    uint64_t place;
    if (make_room(slots, 1) < 0 || place_of(table, key, &place) < 0 ||
        slot_of(table, place, &slots->slot[slots->count]) < 0) {
        return -1;
    }
    slots->count++;
    return 0;
}

static int
add_each(const Table *table, PyObject *keys, Slots *slots)
{
    PyObject *each = PyObject_GetIter(keys), *key;
    if (each == NULL) {
        return -1;
    }
    while ((key = PyIter_Next(each)) != NULL) {
        int failed = add_one(table, key, slots);
        Py_DECREF(key);
        if (failed) {
            break;
        }
    }
    Py_DECREF(each);
    return PyErr_Occurred() ? -1 : 0;
}

/* -- buffers of integers */

static int
add_integers(const Table *table, const Numbers *numbers, Slots *slots)
{
    uint64_t places[BLOCK];
    if (make_room(slots, numbers->count) < 0) {
        return -1;
    }
    while (slots->count < numbers->count) {
        Py_ssize_t left = numbers->count - slots->count, stop = slots->count + (left < MANY ? left : MANY);
        PyThreadState *without = left > FEW ? PyEval_SaveThread() : NULL;
        while (slots->count < stop) {
            Py_ssize_t count = stop - slots->count < BLOCK ? stop - slots->count : BLOCK;
            for (Py_ssize_t i = 0; i < count; i++) {
                places[i] = hash_integer(integer_at(numbers, slots->count + i));
            }
            table->native->find_many(table->native, places, slots->slot + slots->count, (size_t)count);
            slots->count += count;
        }
        if (without != NULL) {
            PyEval_RestoreThread(without);
        }
        if (PyErr_CheckSignals() < 0) {
            return -1;
        }
    }
    return 0;
}

static int
add_each_integer(const Table *table, const Numbers *numbers, Slots *slots)
{
    for (Py_ssize_t i = 0; i < numbers->count; i++) {
        Integer number = integer_at(numbers, i);
        PyObject *key = number.negative ? PyLong_FromLongLong((long long)number.bits)
                                        : PyLong_FromUnsignedLongLong(number.bits);
        int failed = key == NULL || add_one(table, key, slots) < 0;
        Py_XDECREF(key);
        if (failed) {
            return -1;
        }
    }
    return 0;
}

/* -- lists, tuples and other iterables, in chunks: gathered with the GIL, looked up without it
 *
 * A key is an object somewhere in memory, and getting it from there takes longer than anything else. So a short one is
 * hashed while it is at hand: to copy it, or to keep it alive and come back to it without the GIL, would take as long.
 * Long ones are kept and hashed without it.
 */

enum {
    SHORT = 128,         /* bytes */
    AHEAD_BY = 16,       /* how many keys before it is read a key is asked for */
    LAST_CHUNK = 1 << 16 /* keys: some ms with the GIL, as long as others have it when we let it go */
};

typedef struct {
    PyObject *key;
    const char *data;
    size_t size;
    Py_ssize_t at; /* in places */
} Kept;

typedef struct {
    PyObject *keys;  /* a list or a tuple */
    PyObject *each;  /* else an iterator */
    Py_ssize_t next; /* a list may change while the GIL is not ours: no more than an iterator notices */
    int changed;     /* whether it may have */
    uint64_t *places;
    Py_ssize_t count, room;
    Kept *kept;
    Py_ssize_t kept_count, kept_room;
    size_t kept_bytes;
    uint64_t first[FEW]; /* places for small batches */
} Batch;

/* The first chunk is small, for small batches, the later ones are large, so that the GIL is let go seldom. */
static int
batch_begin(Batch *batch)
{
    batch->count = 0;
    if (batch->places == NULL) {
        batch->places = batch->first;
        batch->room = FEW;
    }
    else if (batch->places == batch->first) {
        batch->places = PyMem_Malloc(LAST_CHUNK * sizeof *batch->places);
        batch->room = LAST_CHUNK;
    }
    if (batch->places == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static int
batch_keep(Batch *batch, PyObject *key, const char *data, size_t size)
{
    if (batch->kept_count == batch->kept_room) {
        Py_ssize_t room = batch->kept_room ? 4 * batch->kept_room : 64;
        Kept *kept = PyMem_Realloc(batch->kept, (size_t)room * sizeof *kept);
        if (kept == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        batch->kept = kept;
        batch->kept_room = room;
    }
    batch->kept_bytes += size;
    batch->kept[batch->kept_count++] = (Kept){Py_NewRef(key), data, size, batch->count++};
    return 0;
}

static inline int
batch_add(Batch *batch, const Table *table, PyObject *key)
{
    const char *data = NULL;
    Py_ssize_t size = 0;
    if (PyUnicode_CheckExact(key)) {
        data = PyUnicode_AsUTF8AndSize(key, &size);
        if (data == NULL) {
            PyErr_Clear(); /* place_of says it better */
        }
    }
    else if (PyBytes_CheckExact(key)) {
        data = PyBytes_AsString(key);
        size = PyBytes_Size(key);
    }
    if (data == NULL) {
        Py_INCREF(key); /* whatever Python does meanwhile */
        int failed = place_of(table, key, &batch->places[batch->count++]);
        Py_DECREF(key);
        batch->changed = 1;
        return failed;
    }
    if (size > SHORT) {
        return batch_keep(batch, key, data, (size_t)size);
    }
    batch->places[batch->count++] = xxh64(data, (size_t)size, 0);
    return 0;
}

static int
batch_gather_each(Batch *batch, const Table *table)
{
    PyObject *key;
    while (batch->count < batch->room && (key = PyIter_Next(batch->each)) != NULL) {
        int failed = batch_add(batch, table, key);
        Py_DECREF(key);
        if (failed) {
            return -1;
        }
    }
    return PyErr_Occurred() ? -1 : 0;
}

static int
batch_gather(Batch *batch, const Table *table)
{
    if (batch->each != NULL) {
        return batch_gather_each(batch, table);
    }
    int is_list = PyList_CheckExact(batch->keys);
    PyObject *(*item_at)(PyObject *, Py_ssize_t) = is_list ? PyList_GetItem : PyTuple_GetItem;
    Py_ssize_t size = 0;
    for (batch->changed = 1; batch->count < batch->room; batch->next++) {
        if (batch->changed) {
            size = is_list ? PyList_Size(batch->keys) : PyTuple_Size(batch->keys);
            batch->changed = 0;
        }
        if (batch->next >= size) {
            break;
        }
        if (batch->next + AHEAD_BY < size) {
            const char *later = (const char *)item_at(batch->keys, batch->next + AHEAD_BY);
            PREFETCH(later);
            PREFETCH(later + 64);
        }
        if (batch_add(batch, table, item_at(batch->keys, batch->next)) < 0) {
            return -1;
        }
    }
    return 0;
}

static void
batch_find(const Batch *batch, const Finder *finder, uint32_t *slots)
{
    for (Py_ssize_t i = 0; i < batch->kept_count; i++) {
        const Kept *kept = &batch->kept[i];
        batch->places[kept->at] = xxh64(kept->data, kept->size, 0);
    }
    finder->find_many(finder, batch->places, slots, (size_t)batch->count);
}

static void
batch_drop(Batch *batch)
{
    while (batch->kept_count > 0) {
        Py_DECREF(batch->kept[--batch->kept_count].key);
    }
    batch->kept_bytes = 0;
}

static int
add_batch(const Table *table, PyObject *keys, Slots *slots)
{
    Batch batch;
    memset(&batch, 0, offsetof(Batch, first));
    int failed, full;
    if (PyTuple_CheckExact(keys) || (HAS_GIL && PyList_CheckExact(keys))) {
        batch.keys = keys; /* without a GIL, only an iterator can tell how long a list still is */
    }
    else if ((batch.each = PyObject_GetIter(keys)) == NULL) {
        return -1;
    }
    do {
        failed = batch_begin(&batch) < 0 || batch_gather(&batch, table) < 0 || make_room(slots, batch.count) < 0;
        full = batch.count == batch.room;
        if (!failed) {
            int is_long = batch.count > FEW || batch.kept_bytes > MUCH;
            PyThreadState *without = is_long ? PyEval_SaveThread() : NULL;
            batch_find(&batch, table->native, slots->slot + slots->count);
            if (without != NULL) {
                PyEval_RestoreThread(without);
                failed = PyErr_CheckSignals() < 0;
            }
            slots->count += batch.count;
        }
        batch_drop(&batch);
    } while (full && !failed);
    if (batch.places != batch.first) {
        PyMem_Free(batch.places);
    }
    PyMem_Free(batch.kept);
    Py_XDECREF(batch.each);
    return failed ? -1 : 0;
}

static int
slots_of(const Table *table, PyObject *keys, Slots *slots)
{
    int native = table->native != NULL && table->hasher == Py_None;
    Numbers numbers = {0};
    if (take_buffer(keys, &numbers)) {
        int failed = native ? add_integers(table, &numbers, slots) : add_each_integer(table, &numbers, slots);
        drop_numbers(&numbers);
        return failed;
    }
    return native ? add_batch(table, keys, slots) : add_each(table, keys, slots);
}

#endif
