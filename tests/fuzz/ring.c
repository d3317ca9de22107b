/* SPDX-License-Identifier: MIT */
/*
 * A ring's end against a peer that writes what it likes: each call beside a model of the rules,
 * each change of the shared memory beside a copy that only what the rules permit is written to.
 *
 * Input: kind u8, slot size u16, room beyond the header u16, first index u32; then calls: code u8
 * and its arguments.
 */
#include "ring.h"
#include "fuzz.h"

enum {
    ROOM = 1024,
    SLOT_SIZES = 200,
    MOST_BYTES = RING_PAIR_HEADER + ROOM + SLOT_SIZES + RING_MIN_SLOT,
    WORDS = 6
};

static struct area memory[2];
static unsigned char shadow[2][MOST_BYTES];

/* Where a lane's words and slots are; `cons` is 0 where there is none. */
struct lane {
    int in;
    size_t prod, event, cons, slots;
};

struct model {
    bool xen, back, broken;
    uint32_t entries, slot_size, put, published, taken, released;
    struct lane putting, taking;
};

static uint32_t word_at(int in, size_t at) {
    uint32_t value;
    memcpy(&value, memory[in].base + at, sizeof value);
    return value;
}

static void may_write(int in, size_t at, uint32_t value) {
    memcpy(shadow[in] + at, &value, sizeof value);
}

static void same_as_shadow(void) {
    for (int i = 0; i < 2; i++)
        CHECK(!memcmp(memory[i].base, shadow[i], memory[i].size));
}

static void scribble(struct input *input, const struct model *model) {
    static const size_t WORD[WORDS] = {0, 4, 8, 12, 64, 68};
    uint8_t how = take8(input);
    int in = how & 1;
    size_t at = WORD[how / 2 % 8 % WORDS];
    const uint32_t from[] = {model->put, model->taken, model->taken + model->entries, 0};
    uint32_t base = from[how / 16 % 4];
    uint32_t value = base + (base ? (uint32_t)(int8_t)take8(input) : take32(input));
    if (how & 128) { /* a slot's bytes */
        at = RING_XEN_HEADER + value % (uint32_t)(memory[in].size - RING_XEN_HEADER - 3);
        value = take32(input);
    }
    memcpy(memory[in].base + at, &value, sizeof value);
    memcpy(shadow[in] + at, &value, sizeof value);
}

static int waiting_by_rule(struct model *model) {
    if (model->broken)
        return RING_BROKEN;
    uint32_t most = model->entries, shown = word_at(model->taking.in, model->taking.prod);
    if (model->xen)
        most = model->back ? model->entries - (model->taken - model->published)
                           : model->published - model->taken;
    if (shown - model->taken > most) {
        model->broken = true;
        return RING_BROKEN;
    }
    return (int)(shown - model->taken);
}

static int free_by_rule(struct model *model) {
    if (model->broken)
        return RING_BROKEN;
    if (model->xen)
        return (int)(model->back ? model->taken - model->put
                                 : model->entries - (model->put - model->taken));
    uint32_t consumed = word_at(model->putting.in, model->putting.cons);
    if (consumed - model->released > model->published - model->released) {
        model->broken = true;
        return RING_BROKEN;
    }
    model->released = consumed;
    return (int)(model->entries - (model->put - consumed));
}

static void put(struct input *input, struct ring_end *end, struct model *model) {
    static struct area message;
    uint16_t bits = take16(input);
    size_t length = bits % (model->slot_size + 1);
    bool zero_rest = bits & 0x8000;
    area_reset(&message, SLOT_SIZES + RING_MIN_SLOT, length, take8(input));
    /* What is known to be free is not asked for again. */
    bool known = !model->xen && !model->broken && model->put - model->released < model->entries;
    int room = known ? 1 : free_by_rule(model);
    if (room > 0) {
        unsigned char *slot = shadow[model->putting.in] + model->putting.slots +
                              (size_t)(model->put++ % model->entries) * model->slot_size;
        memcpy(slot, message.base, length);
        if (zero_rest)
            memset(slot + length, 0, model->slot_size - length);
    }
    CHECK(ring_put(end, message.base, length, zero_rest) == (room > 0 ? 1 : room));
}

static void publish(struct ring_end *end, struct model *model) {
    int wanted = RING_BROKEN;
    if (!model->broken) {
        uint32_t fresh = model->put - model->published;
        wanted = fresh && model->put - word_at(model->putting.in, model->putting.event) < fresh;
        if (fresh)
            may_write(model->putting.in, model->putting.prod, model->put);
        model->published = model->put;
    }
    CHECK(ring_publish(end) == wanted);
}

static void take_some(struct input *input, struct ring_end *end, struct model *model) {
    static struct area slot;
    uint8_t most = take8(input);
    bool one_by_one = most & 128;
    int waiting = waiting_by_rule(model);
    CHECK(ring_waiting(end) == waiting);
    count(waiting > 0);
    if (waiting <= 0)
        return;
    CHECK((uint32_t)waiting <= model->entries);
    uint32_t some = 1 + (most & 127u) % (uint32_t)waiting;
    ring_prefetch(end, some);
    for (uint32_t nth = 0; nth < some; nth++) {
        area_reset(&slot, SLOT_SIZES + RING_MIN_SLOT, model->slot_size, 0);
        if (one_by_one)
            ring_take(end, slot.base);
        else
            ring_copy(end, nth, slot.base);
        CHECK(!memcmp(slot.base,
                      shadow[model->taking.in] + model->taking.slots +
                          (size_t)((model->taken + nth) % model->entries) * model->slot_size,
                      model->slot_size));
        area_check(&slot);
    }
    if (one_by_one)
        ring_release(end);
    else
        ring_consume(end, some);
    model->taken += some;
    if (model->taking.cons)
        may_write(model->taking.in, model->taking.cons, model->taken);
}

static void arm(struct ring_end *end, struct model *model) {
    int waiting = waiting_by_rule(model);
    if (!waiting)
        may_write(model->taking.in, model->taking.event, model->taken + 1);
    CHECK(ring_arm(end) == (waiting > 0 ? 1 : waiting));
}

static void change_slot_size(struct input *input, struct ring_end *end, struct model *model) {
    uint32_t slot_size = RING_MIN_SLOT + take16(input) % SLOT_SIZES;
    size_t bytes = memory[0].size;
    bool changed = ring_change_slot_size(end, bytes, slot_size);
    if (!changed)
        return;
    CHECK(model->xen && !model->back);
    CHECK(model->put == model->published && model->published == model->taken);
    CHECK(RING_XEN_HEADER + (size_t)model->entries * slot_size <= bytes);
    model->slot_size = slot_size;
}

/* Begin as one of the four; the back ones find what the peer left there. */
static void make(uint8_t kind, struct ring_end *end, struct model *model, uint32_t start) {
    size_t bytes = memory[0].size;
    uint32_t slot_size = model->slot_size;
    const struct lane requests = {0, 0, model->xen ? 4 : 68, model->xen ? 0 : 64,
                                  model->xen ? RING_XEN_HEADER : RING_PAIR_HEADER};
    struct lane responses = {1, 0, 68, 64, RING_PAIR_HEADER};
    if (model->xen)
        responses = (struct lane){0, 8, 12, 0, RING_XEN_HEADER};
    model->putting = model->back ? responses : requests;
    model->taking = model->back ? requests : responses;
    model->put = model->taken = start;
    switch (kind) {
    case 0:
        ring_front(end, memory[0].base, bytes, slot_size, start);
        break;
    case 1:
        ring_back(end, memory[0].base, bytes, slot_size);
        model->put = model->taken = word_at(0, 8);
        break;
    case 2:
        ring_pair_front(end, memory[0].base, memory[1].base, bytes, slot_size, start);
        break;
    default:
        ring_pair_back(end, memory[0].base, memory[1].base, bytes, slot_size);
        model->put = word_at(1, 0);
        model->taken = word_at(0, 64);
    }
    model->published = model->put;
    model->released = kind == 3 ? model->put - model->entries : start;
    if (!model->back) { /* a new header is checked by what follows from it */
        for (int i = 0; i < 2; i++)
            memcpy(shadow[i], memory[i].base, RING_PAIR_HEADER);
        CHECK(word_at(model->putting.in, model->putting.prod) == start);
        CHECK(word_at(model->taking.in, model->taking.event) == start + 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    uint8_t kind = take8(&input) % 4;
    struct model model = {.xen = kind < 2, .back = kind & 1};
    model.slot_size = RING_MIN_SLOT + take16(&input) % SLOT_SIZES;
    size_t header = model.xen ? RING_XEN_HEADER : RING_PAIR_HEADER;
    /* At least as much as a pair's header: to compare them is simpler so. */
    size_t bytes = RING_PAIR_HEADER + model.slot_size + take16(&input) % ROOM;
    uint32_t start = take32(&input);
    for (int i = 0; i < 2; i++) {
        area_reset(&memory[i], MOST_BYTES, bytes, 0);
        memset(shadow[i], 0, sizeof shadow[i]);
    }
    model.entries = ring_entries(bytes, header, model.slot_size);
    CHECK(header + (size_t)model.entries * model.slot_size <= bytes);
    CHECK(header + 2 * (size_t)model.entries * model.slot_size > bytes);
    CHECK(model.entries && !(model.entries & (model.entries - 1)));
    for (uint8_t words = take8(&input) % 4; words; words--)
        scribble(&input, &model);

    struct ring_end end;
    make(kind, &end, &model, start);
    CHECK(end.entries == model.entries);
    while (input.left) {
        switch (take8(&input) % 7) {
        case 0:
            put(&input, &end, &model);
            break;
        case 1:
            publish(&end, &model);
            break;
        case 2:
            take_some(&input, &end, &model);
            break;
        case 3:
            arm(&end, &model);
            break;
        case 4:
            CHECK(ring_free(&end) == free_by_rule(&model));
            break;
        case 5:
            change_slot_size(&input, &end, &model);
            break;
        default:
            scribble(&input, &model);
        }
        CHECK(!end.fault == !model.broken);
        same_as_shadow();
    }
    area_check(&memory[0]);
    area_check(&memory[1]);
    return 0;
}
