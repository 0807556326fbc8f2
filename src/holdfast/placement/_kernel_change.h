/* How rings come about: from unsorted points, or from another ring by a few points more and less. */

#ifndef HOLDFAST_KERNEL_CHANGE_H
#define HOLDFAST_KERNEL_CHANGE_H

#include "_kernel_base.h"
#include "_kernel_ring.h"

/* Sort by radix, eight bits at a time; owners may be NULL. No order of the points makes it slow. */
static int
sort_points(uint64_t *points, uint32_t *owners, size_t count)
{
    uint64_t *from = points, *to = PyMem_Malloc(count * sizeof *to + 1);
    uint32_t *owners_from = owners, *owners_to = owners ? PyMem_Malloc(count * sizeof *owners_to + 1) : NULL;
    uint64_t *spare = to;
    uint32_t *spare_owners = owners_to;
    size_t (*starts)[256] = PyMem_Calloc(8, sizeof *starts);
    if (to == NULL || starts == NULL || (owners && owners_to == NULL)) {
        PyMem_Free(spare);
        PyMem_Free(spare_owners);
        PyMem_Free(starts);
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        for (int byte = 0; byte < 8; byte++) {
            starts[byte][points[i] >> 8 * byte & 255]++;
        }
    }
    for (int byte = 0; byte < 8; byte++) {
        size_t total = 0, largest = 0;
        for (int value = 0; value < 256; value++) {
            size_t here = starts[byte][value];
            starts[byte][value] = total;
            total += here;
            largest = here > largest ? here : largest;
        }
        if (largest == count) { /* this byte is the same in all */
            continue;
        }
        for (size_t i = 0; i < count; i++) {
            size_t at = starts[byte][from[i] >> 8 * byte & 255]++;
            to[at] = from[i];
            if (owners) {
                owners_to[at] = owners_from[i];
            }
        }
        uint64_t *swap = from;
        from = to;
        to = swap;
        uint32_t *swap_owners = owners_from;
        owners_from = owners_to;
        owners_to = swap_owners;
    }
    if (from != points) {
        memcpy(points, from, count * sizeof *points);
        if (owners) {
            memcpy(owners, owners_from, count * sizeof *owners);
        }
    }
    PyMem_Free(spare);
    PyMem_Free(spare_owners);
    PyMem_Free(starts);
    return 0;
}

/* A sorted copy, for the caller to free; NULL where memory ran out. */
static uint64_t *
sorted_numbers(const Numbers *numbers)
{
    uint64_t *sorted = PyMem_Malloc((size_t)numbers->count * sizeof *sorted + 1);
    for (Py_ssize_t i = 0; sorted != NULL && i < numbers->count; i++) {
        sorted[i] = number_at(numbers, i);
    }
    if (sorted != NULL && sort_points(sorted, NULL, (size_t)numbers->count) < 0) {
        PyMem_Free(sorted);
        sorted = NULL;
    }
    return sorted;
}

/* Whether the owner's name sorts before the other's: 1, 0, or -1 with an error where a slot has no name. */
static int
name_before(PyObject *names, uint32_t one, uint32_t other)
{
    PyObject *a = PyTuple_GetItem(names, one), *b = a ? PyTuple_GetItem(names, other) : NULL;
    int order = b ? PyUnicode_Compare(a, b) : -1;
    if (order < 0 && PyErr_Occurred()) {
        return -1;
    }
    return order < 0;
}

/* Put equal points into the order of their owners' names. With 64 bits there are none; with weak hashes, short runs. */
static int
order_ties(const uint64_t *points, uint32_t *owners, Py_ssize_t count, PyObject *names)
{
    for (Py_ssize_t i = 1; i < count; i++) {
        for (Py_ssize_t at = i; at > 0 && points[at - 1] == points[i] && owners[at - 1] != owners[at]; at--) {
            int before = name_before(names, owners[at], owners[at - 1]);
            if (before < 0) {
                return -1;
            }
            if (!before) {
                break;
            }
            uint32_t owner = owners[at];
            owners[at] = owners[at - 1];
            owners[at - 1] = owner;
        }
    }
    return 0;
}

static PyObject *
ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *words[] = {"points", "owners", "names", NULL};
    PyObject *given_points, *given_owners, *given_names;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:Ring", words, &given_points, &given_owners, &given_names)) {
        return NULL;
    }
    Numbers wide = {0}, narrow = {0};
    Ring *ring = NULL;
    uint64_t *points;
    uint32_t *owners;
    PyObject *names = PySequence_Tuple(given_names);
    if (names == NULL || take_numbers(given_points, &wide) < 0 || take_numbers(given_owners, &narrow) < 0) {
        goto failed;
    }
    if (wide.count != narrow.count) {
        PyErr_Format(PyExc_ValueError, "%zd points have %zd owners", wide.count, narrow.count);
        goto failed;
    }
    ring = ring_alloc(type, wide.count, &points, &owners);
    if (ring == NULL) {
        goto failed;
    }
    for (Py_ssize_t i = 0; i < wide.count; i++) {
        uint64_t owner = number_at(&narrow, i);
        if (owner >= (uint64_t)PyTuple_Size(names)) {
            PyErr_Format(PyExc_IndexError, "a point's owner is slot %llu of %zd", owner, PyTuple_Size(names));
            goto failed;
        }
        points[i] = number_at(&wide, i);
        owners[i] = (uint32_t)owner;
        ring->slots = owner >= ring->slots ? (uint32_t)owner + 1 : ring->slots;
    }
    if (sort_points(points, owners, (size_t)wide.count) < 0 || order_ties(points, owners, wide.count, names) < 0) {
        goto failed;
    }
    owners[wide.count] = owners[0];
    ring_fill_guide(ring);
    goto done;
failed:
    Py_CLEAR(ring);
done:
    drop_numbers(&wide);
    drop_numbers(&narrow);
    Py_XDECREF(names);
    return (PyObject *)ring;
}

/* -- changing one: a copy with a few points more and less, made of long runs of the old one */

/* Where in the old ring each removed point stands; those that `slot` has not got are passed over. Both ascend. */
static Py_ssize_t
find_removed(const Ring *ring, uint32_t slot, const uint64_t *removed, Py_ssize_t count, size_t *at)
{
    Py_ssize_t found = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t here = ring_position(ring, removed[i]);
        if (found && here <= at[found - 1]) {
            here = at[found - 1] + 1; /* the same point twice */
        }
        while (here < (size_t)ring->count && ring->points[here] == removed[i] && ring->owners[here] != slot) {
            here++;
        }
        if (here < (size_t)ring->count && ring->points[here] == removed[i]) {
            at[found++] = here;
        }
    }
    return found;
}

/* Before which points of the old ring the added ones go. */
static int
find_added(const Ring *ring, uint32_t slot, const uint64_t *added, Py_ssize_t count, PyObject *names, size_t *at)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        at[i] = ring_position(ring, added[i]);
        while (at[i] < (size_t)ring->count && ring->points[at[i]] == added[i] && ring->owners[at[i]] != slot) {
            int before = name_before(names, ring->owners[at[i]], slot);
            if (before < 0) {
                return -1;
            }
            if (!before) {
                break;
            }
            at[i]++;
        }
    }
    return 0;
}

typedef struct {
    const uint64_t *added;
    const size_t *added_at, *removed_at;
    Py_ssize_t added_count, removed_count;
    uint32_t slot;
} Edit;

static void
ring_merge(const Ring *old, const Edit *edit, uint64_t *points, uint32_t *owners)
{
    size_t read = 0, written = 0;
    Py_ssize_t a = 0, r = 0;
    for (;;) {
        int adds = a < edit->added_count, removes = r < edit->removed_count;
        if (adds && removes) { /* whichever comes first */
            adds = edit->added_at[a] <= edit->removed_at[r];
        }
        size_t stop = adds ? edit->added_at[a] : removes ? edit->removed_at[r] : (size_t)old->count;
        memcpy(points + written, old->points + read, (stop - read) * sizeof *points);
        memcpy(owners + written, old->owners + read, (stop - read) * sizeof *owners);
        written += stop - read;
        read = stop;
        if (adds) {
            points[written] = edit->added[a++];
            owners[written++] = edit->slot;
        }
        else if (removes) {
            read++;
            r++;
        }
        else {
            return;
        }
    }
}

/* The old guide, each entry moved by how many points came and went below it. */
static void
ring_merge_guide(const Ring *old, const Edit *edit, Ring *ring)
{
    uint64_t tops = UINT64_C(1) << (64 - ring->shift), next = 0;
    uint32_t moved = 0; /* modulo 2**32, as it may be below zero */
    Py_ssize_t a = 0, r = 0;
    for (;;) {
        uint64_t add = a < edit->added_count ? edit->added[a] >> ring->shift : tops;
        uint64_t remove = r < edit->removed_count ? old->points[edit->removed_at[r]] >> ring->shift : tops;
        for (uint64_t stop = add < remove ? add : remove; next <= stop; next++) {
            ring->guide[next] = old->guide[next] + moved;
        }
        if (add == tops && remove == tops) {
            return;
        }
        if (add <= remove) {
            moved++;
            a++;
        }
        else {
            moved--;
            r++;
        }
    }
}

/* changed(slot, added, removed, names) */
static PyObject *
ring_changed(PyObject *self, PyObject *args)
{
    const Ring *old = (const Ring *)self;
    PyObject *given_added, *given_removed, *given_names;
    Py_ssize_t slot;
    if (!PyArg_ParseTuple(args, "nOOO:changed", &slot, &given_added, &given_removed, &given_names)) {
        return NULL;
    }
    if (slot < 0 || (uint64_t)slot >= UINT32_MAX) {
        return PyErr_Format(PyExc_IndexError, "no slot has the number %zd", slot);
    }
    Numbers plus = {0}, minus = {0};
    Ring *ring = NULL;
    uint64_t *added = NULL, *removed = NULL;
    size_t *added_at = NULL, *removed_at = NULL;
    PyObject *names = PySequence_Tuple(given_names);
    if (names == NULL || take_numbers(given_added, &plus) < 0 || take_numbers(given_removed, &minus) < 0) {
        goto done;
    }
    added = sorted_numbers(&plus);
    removed = sorted_numbers(&minus);
    added_at = PyMem_Malloc((size_t)plus.count * sizeof *added_at + 1);
    removed_at = PyMem_Malloc((size_t)minus.count * sizeof *removed_at + 1);
    if (added == NULL || removed == NULL || added_at == NULL || removed_at == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    Edit edit = {added, added_at, removed_at, plus.count, 0, (uint32_t)slot};
    edit.removed_count = find_removed(old, edit.slot, removed, minus.count, removed_at);
    if (find_added(old, edit.slot, added, plus.count, names, added_at) < 0) {
        goto done;
    }
    uint64_t *points;
    uint32_t *owners;
    ring = ring_alloc(Py_TYPE(self), old->count + edit.added_count - edit.removed_count, &points, &owners);
    if (ring == NULL) {
        goto done;
    }
    ring_merge(old, &edit, points, owners);
    owners[ring->count] = owners[0];
    ring->slots = edit.added_count && edit.slot >= old->slots ? edit.slot + 1 : old->slots;
    if (ring->shift == old->shift) {
        ring_merge_guide(old, &edit, ring);
    }
    else {
        ring_fill_guide(ring);
    }
done:
    PyMem_Free(added);
    PyMem_Free(removed);
    PyMem_Free(added_at);
    PyMem_Free(removed_at);
    drop_numbers(&plus);
    drop_numbers(&minus);
    Py_XDECREF(names);
    return (PyObject *)ring;
}

#endif
