#!/usr/bin/env python3
"""A second reader of the repository format, written from ../format.md alone: restores one backup to a sparse file.

    read.py REPOSITORY VOLUME BACKUP OUT    restores a backup
    read.py REPOSITORY                      checks every pack's table, and the index against them

Of a sealed repository the master keys are read from the files named in $MASTER_KEYS, separated by colons: what age decrypts of a key object's
"wrapped", then what it decrypts of each rotation's, in order. For one key:

    head -n1 keys/KEY | python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["wrapped"]))' | age -d -i IDENTITY

It needs Python 3.10 with its standard library and the zstd tool; for sealed repositories OpenSSL's libcrypto. It is slow (BLAKE3 in Python); it is here to prove the page, and to be what
one falls back on. Section numbers are those of format.md.
"""
import ctypes
import ctypes.util
import json
import os
import struct
import subprocess
import sys

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


class Damage(Exception):
    """What is stored is not what the format allows; the text names the object."""


def need(ok, where, what):
    if not ok:
        raise Damage(f"{where}: {what}")


# --- xxHash64, seed 0 -------------------------------------------------------------------------------------------------

P1, P2, P3, P4, P5 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def rotl(x, r):
    return (x << r | x >> 64 - r) & M64


def xxround(acc, lane):
    return rotl((acc + lane * P2) & M64, 31) * P1 & M64


def xxh64(b):
    n, at = len(b), 0
    if n >= 32:
        v = [(P1 + P2) & M64, P2, 0, -P1 & M64]
        while n - at >= 32:
            v = [xxround(a, lane) for a, lane in zip(v, struct.unpack_from("<4Q", b, at))]
            at += 32
        h = (rotl(v[0], 1) + rotl(v[1], 7) + rotl(v[2], 12) + rotl(v[3], 18)) & M64
        for a in v:
            h = ((h ^ xxround(0, a)) * P1 + P4) & M64
    else:
        h = P5
    h = (h + n) & M64
    while n - at >= 8:
        h = (rotl(h ^ xxround(0, struct.unpack_from("<Q", b, at)[0]), 27) * P1 + P4) & M64
        at += 8
    if n - at >= 4:
        h = (rotl(h ^ struct.unpack_from("<I", b, at)[0] * P1 & M64, 23) * P2 + P3) & M64
        at += 4
    for c in b[at:]:
        h = rotl(h ^ c * P5 & M64, 11) * P1 & M64
    h = (h ^ h >> 33) * P2 & M64
    h = (h ^ h >> 29) * P3 & M64
    return h ^ h >> 32


# --- BLAKE3, 32 bytes of output -----------------------------------------------------------------------------------------

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
START, END, PARENT, ROOT, KEYED, DERIVE_CONTEXT, DERIVE_KEY = 1, 2, 4, 8, 16, 32, 64
MIX = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
PERMUTE = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
ORDER = [tuple(range(16))]
for _ in range(6):
    ORDER.append(tuple(ORDER[-1][i] for i in PERMUTE))


def compress(cv, m, counter, length, flags):
    s = [*cv, *IV[:4], counter & M32, counter >> 32, length, flags]
    for order in ORDER:
        for i, (a, b, c, d) in enumerate(MIX):
            va, vb, vc, vd = s[a], s[b], s[c], s[d]
            va = va + vb + m[order[2 * i]] & M32
            vd ^= va
            vd = (vd >> 16 | vd << 16) & M32
            vc = vc + vd & M32
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & M32
            va = va + vb + m[order[2 * i + 1]] & M32
            vd ^= va
            vd = (vd >> 8 | vd << 24) & M32
            vc = vc + vd & M32
            vb ^= vc
            s[a], s[b], s[c], s[d] = va, (vb >> 7 | vb << 25) & M32, vc, vd
    return [s[i] ^ s[i + 8] for i in range(8)]


def blake3(data, key=IV, mode=0):
    def chunk(first, end, root):
        cv, at = key, first
        while True:
            block = data[at:min(at + 64, end)]
            flags = mode | (START if at == first else 0) | (END | root if at + 64 >= end else 0)
            cv = compress(cv, struct.unpack("<16I", block.ljust(64, b"\0")), first >> 10, len(block), flags)
            at += 64
            if at >= end:
                return cv

    def tree(first, end, root):
        n = end - first
        if n <= 1024:
            return chunk(first, end, root)
        left = 1024
        while left * 2 < n:
            left *= 2
        block = tree(first, first + left, 0) + tree(first + left, end, 0)
        return compress(key, block, 0, 64, mode | PARENT | root)

    return struct.pack("<8I", *tree(0, len(data), ROOT))


def derive_key(context, material):
    return blake3(material, struct.unpack("<8I", blake3(context.encode(), mode=DERIVE_CONTEXT)), DERIVE_KEY)


def keyed_hash(key, data):
    return blake3(data, struct.unpack("<8I", key), KEYED)


# --- S2 blocks (5) --------------------------------------------------------------------------------------------------------


def unpack_s2(b, raw, where):
    out, at, offset = bytearray(), 0, 0

    def number(n):
        nonlocal at
        need(at + n <= len(b), where, "S2 block is cut short")
        at += n
        return int.from_bytes(b[at - n:at], "little")

    while number(1) > 127:  # the raw length; the index has told it
        pass
    while at < len(b) and len(out) <= raw:
        t = number(1)
        n = t >> 2
        if t & 3 == 0:
            n = number(n - 59) if n >= 60 else n
            need(at + n < len(b), where, "S2 literal is cut short")
            out += b[at:at + n + 1]
            at += n + 1
            continue
        if t & 3 == 1:
            v, n = (t & 0xE0) << 3 | number(1), n & 7
            if v:
                offset = v
            elif n >= 5:
                n = number(n - 4) + (4, 256, 65536)[n - 5]
            n += 4
        else:
            offset = number(2 if t & 3 == 2 else 4)
            n += 1
        need(0 < offset <= len(out) and len(out) + n <= raw, where, "S2 copy reaches outside")
        while n > 0:
            piece = out[-offset:][:n]
            out += piece
            n -= len(piece)
    return bytes(out)


# --- Sealing (12) ---------------------------------------------------------------------------------------------------------


def libcrypto():
    lib = ctypes.CDLL(ctypes.util.find_library("crypto"))
    for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_gcm"):
        getattr(lib, name).restype = ctypes.c_void_p
    return lib


def open_gcm(key, nonce, aad, sealed):
    """The plain bytes, or None where they are not authentic."""
    lib = libcrypto()
    ctx, n, out = ctypes.c_void_p(lib.EVP_CIPHER_CTX_new()), ctypes.c_int(), ctypes.create_string_buffer(len(sealed) + 1)
    text, tag = sealed[:-16], sealed[-16:]
    set_tag = 0x11  # EVP_CTRL_AEAD_SET_TAG
    try:
        ok = lib.EVP_DecryptInit_ex(ctx, ctypes.c_void_p(lib.EVP_aes_256_gcm()), None, key, nonce) == 1
        ok = ok and lib.EVP_DecryptUpdate(ctx, None, ctypes.byref(n), aad, len(aad)) == 1
        ok = ok and lib.EVP_DecryptUpdate(ctx, out, ctypes.byref(n), text, len(text)) == 1
        ok = ok and lib.EVP_CIPHER_CTX_ctrl(ctx, set_tag, 16, tag) == 1
        ok = ok and lib.EVP_DecryptFinal_ex(ctx, None, ctypes.byref(n)) == 1
        return out.raw[:len(text)] if ok else None
    finally:
        lib.EVP_CIPHER_CTX_free(ctx)


class Seal:
    """How the records of one pack are opened: a sealed repository's, or (without masters) a plain one's."""

    def __init__(self, masters, kind, salt, where):
        self.key = None
        if masters:
            need(salt[0] < len(masters), where, f"master key {salt[0]} is not known")
            self.key = derive_key("shale repository v1: pack key", masters[salt[0]] + bytes([kind]) + salt)

    def tag(self, id):
        return bytes(8) if self.key else id[16:24]

    def open(self, payload, off, id, codec, raw, where):
        if not self.key:
            return payload
        nonce = struct.pack("<Q4x", off)
        plain = open_gcm(self.key, nonce, id + raw.to_bytes(3, "little") + bytes([codec]), payload) if len(payload) >= 16 else None
        need(plain is not None, where, "record is not authentic")
        return plain


def read_masters(paths):
    masters = []
    for path in filter(None, paths.split(":")):
        with open(path, "rb") as f:
            secrets = json.load(f)
        masters += [bytes.fromhex(m) for m in secrets.get("masters") or [secrets["master"]]]
    return masters


# --- Records and packs (5, 6) ---------------------------------------------------------------------------------------------


def open_record(rec, id, codec, raw, where, seal, off):
    """The plain bytes of a record, its sum and tag checked, but not its whole ID."""
    need(len(rec) >= 16 and struct.unpack_from("<Q", rec)[0] == xxh64(rec[8:]), where, "record checksum does not match")
    need(rec[8:16] == seal.tag(id), where, "record belongs to another ID")
    plain = seal.open(rec[16:], off, id, codec, 0 if id == TABLE else raw, where)
    if codec == 1:
        out = subprocess.run(["zstd", "-dcq"], input=plain, stdout=subprocess.PIPE, check=False)
        need(out.returncode == 0, where, "zstd frame is damaged")
        plain = out.stdout
    elif codec == 2:
        plain = unpack_s2(plain, raw, where)
    else:
        need(codec == 0, where, f"codec {codec} is not supported")
    need(len(plain) == raw, where, f"record has {len(plain)} plain bytes, not {raw}")
    return plain


TABLE = b"table".ljust(32, b"\0")


def read_pack(b, where, masters):
    """A whole pack's kind, ID, table: (ID, offset, stored, raw, codec) of each record, and seal."""
    need(88 <= len(b) <= 1 << 30, where, "length is not a pack's")
    magic, version, kind, scheme, zero = struct.unpack_from("<4s4B", b)
    need(magic == b"SHAL" and struct.unpack_from("<Q", b, 24)[0] == xxh64(b[:24]), where, "header is damaged")
    need(version == 1 and scheme == bool(masters) and zero == 0, where, "version, scheme or flags are not supported here")
    seal = Seal(masters, kind, b[8:24], where)
    t = b[-40:]
    off, length, records, body, version, magic, total = struct.unpack("<QIIQI4sQ", t)
    need(magic == b"LAHS" and total == xxh64(t[:32]), where, "trailer is damaged")
    need(version == 1, where, f"version {version} is not supported")
    need(off >= 32 and off + length + 40 == len(b), where, "table does not end at the trailer")
    table = open_record(b[off:-40], TABLE, 0, 40 * records, where, seal, off)
    entries, sums, at = [], b"", 32
    for i in range(records):
        id, stored, rc = struct.unpack_from("<32sII", table, 40 * i)
        need(stored >= 16 and at + stored <= off, where, f"record {i} does not fit")
        entries.append((id, at, stored, rc & 0xFFFFFF, rc >> 24))
        sums += b[at:at + 8]
        at += stored
    need(at == off and body == xxh64(sums), where, "records do not fill the pack, or their sums do not match")
    return kind, blake3(b[:32] + b[off:]).hex(), entries, seal


# --- The repository -------------------------------------------------------------------------------------------------------


class Repository:
    def __init__(self, root, masters):
        self.root, self.masters = root, masters
        line, _, rest = self.object("config").partition(b"\n")
        need(rest[:17] == b"%016x\n" % xxh64(line), "config", "checksum line does not match")
        c = json.loads(line)
        known = (c["format"], c["version"], c["hash"]) == ("shale repository", 1, "blake3")
        need(known, "config", "format, version or hash is not supported")
        need(c.get("sealing", "") in ("", "aes-256-gcm"), "config", "sealing is not supported")
        if c.get("sealing"):
            need(masters, "config", "the repository is sealed: MASTER_KEYS names no file")
            mac = keyed_hash(derive_key("shale repository v1: configuration", masters[0]), line)
            need(rest[17:] == mac.hex().encode() + b"\n", "config", "keyed hash does not match")
        else:
            need(not masters and rest[17:] == b"", "config", "the repository is not sealed")
        secret = masters[0] if masters else bytes.fromhex(c["secret"])
        self.span = c["span_bytes"]
        self.chunk_key = derive_key("shale repository v1: chunk ID", secret)
        self.node_key = derive_key("shale repository v1: tree node ID", secret)
        self.name_key = derive_key("shale repository v1: volume name", secret)
        self.index = {}
        for name in sorted(os.listdir(os.path.join(root, "index"))):
            if not name.startswith("."):
                self.segment("index/" + name)

    def object(self, name):
        with open(os.path.join(self.root, name), "rb") as f:
            return f.read()

    def framed(self, name, kind):
        """Section 8."""
        b, out = self.object(name), b""
        got, pack, entries, seal = read_pack(b, name, self.masters)
        need(got == kind, name, f"pack of kind {got}, not {kind}")
        need(kind != 3 or name == "index/" + pack, name, "content is not what the name says")
        for id, at, stored, raw, codec in entries:
            frame = open_record(b[at:at + stored], id, codec, raw, f"{name} at byte {at}", seal, at)
            need(keyed_hash(self.node_key, frame) == id, name, "content does not match its ID")
            out += frame
        return out

    def segment(self, name):
        """Section 7."""
        b = self.framed(name, 3)
        magic, packs, entries, _run, nodes, zero, plain, end = struct.unpack_from("<8sIIQIIQ16s8x", b)
        fence = 64 + 16 * -(-entries // 2048)
        first = fence + 64 * packs
        need(magic == b"SHINDEX1" and not zero and not any(b[56:64]), name, "magic or flags are not a segment's")
        need(len(b) == first + 32 * entries, name, "length is not a segment's")
        need(b[64:fence] == b"".join(b[at:at + 16] for at in range(first, len(b), 65536)), name, "fence is not the entries'")
        need(end == (b[-32:-16] if entries else bytes(16)), name, "last key is not the last entry's")
        objects = []
        for i in range(packs):
            id, salt, kind, zero, size = struct.unpack_from("<32s16sB7sQ", b, fence + 64 * i)
            need(kind in (1, 2) and not any(zero), name, f"pack {i} is of kind {kind}")
            objects.append((f"packs/{('data', 'tree')[kind - 1]}/{id.hex()[:2]}/{id.hex()}", size, kind, salt))
        last = b""
        for i in range(entries):
            key, pack, off, sizes, codec, zero = struct.unpack_from("<16sII6sBB", b, first + 32 * i)
            stored, raw = int.from_bytes(sizes[:3], "little"), int.from_bytes(sizes[3:], "little")
            need(key > last and zero == 0 and pack < packs, name, f"entry {i} is damaged")
            need(stored >= 16 and off >= 32 and off + stored <= objects[pack][1], name, f"entry {i} lies outside its pack")
            self.index[key], last = (objects[pack][0], off, stored, raw, codec, *objects[pack][2:]), key
            nodes -= objects[pack][0].startswith("packs/tree/")
            plain -= 0 if objects[pack][0].startswith("packs/tree/") else raw
        need(nodes == 0 and plain == 0, name, "nodes or plain bytes are not what the header says")

    def check(self):
        """Every pack has the ID and kind of its name; the index says what the tables say."""
        for kind, name in ((1, "data"), (2, "tree")):
            for folder, _, files in os.walk(os.path.join(self.root, "packs", name)):
                for file in files:
                    if file.startswith("."):
                        continue
                    object = f"packs/{name}/{file[:2]}/{file}"
                    got, pack, entries, _ = read_pack(self.object(object), object, self.masters)
                    need((got, pack) == (kind, file), object, "content is not what the name says")
                    for id, *place in entries:
                        found = self.index.get(id[:16])
                        need(found, object, f"{id.hex()} is in no segment")
                        need(found[0] != object or found[1:5] == tuple(place), object, "index and table disagree")

    def read(self, id, key):
        """The plain bytes of a chunk or node (11, steps 4 and 5)."""
        need(id[:16] in self.index, "index", f"{id.hex()} is in no segment")
        name, off, stored, raw, codec, kind, salt = self.index[id[:16]]
        where = f"{name} at byte {off}"
        with open(os.path.join(self.root, name), "rb") as f:
            f.seek(off)
            plain = open_record(f.read(stored), id, codec, raw, where, Seal(self.masters, kind, salt, where), off)
        need(keyed_hash(key, plain) == id, where, "content does not match its ID")
        return plain

    def backup(self, volume, backup):
        """Section 10."""
        name = f"backups/{keyed_hash(self.name_key, volume.encode())[:16].hex()}/{backup}"
        rec = json.loads(self.framed(name, 4))
        need(rec["version"] == 1, name, f"version {rec['version']} is not supported")
        need((rec["volume"], rec["id"]) == (volume, backup), name, "content is not what the name says")
        size, data = rec["blob"]["size"], rec["blob"]["data"]
        need(0 <= data <= size <= 1 << 56, name, "impossible blob")
        need((data == 0) == (int(rec["blob"]["root"], 16) == 0), name, "impossible blob")
        return bytes.fromhex(rec["blob"]["root"]), size, data

    def chunks(self, root, size):
        """All chunks of a blob, as (offset, length, ID), ascending (9)."""
        level = 0
        while 64**level * self.span < size:
            level += 1
        if any(root):
            yield from self.subtree(root, level, 0, size)

    def subtree(self, id, level, first, size):
        where = f"node {id.hex()}"
        need(first * self.span < size, where, "lies behind the blob's end")
        b = self.read(id, self.node_key)
        if level == 0:
            yield from self.leaf(b, first * self.span, min((first + 1) * self.span, size), where)
            return
        tag, got, present = struct.unpack_from("<cBQ", b)
        need(tag == b"N" and got == level and present and len(b) == 10 + 32 * present.bit_count(), where, "is damaged")
        at = 10
        for slot in range(64):
            if present >> slot & 1:
                yield from self.subtree(b[at:at + 32], level - 1, first + slot * 64**(level - 1), size)
                at += 32

    @staticmethod
    def leaf(b, off, end, where):
        at = 1

        def uvarint():
            nonlocal at
            v = shift = 0
            while True:
                need(at < len(b) and shift < 64, where, "is cut short")
                v |= (b[at] & 127) << shift
                at, shift = at + 1, shift + 7
                if b[at - 1] < 128:
                    need(shift == 7 or b[at - 1], where, "is not in its shortest form")
                    return v

        need(b[:1] == b"L", where, "is no leaf")
        count, ranges = uvarint(), []
        need(0 < count <= len(b) // 34, where, "cannot list so many chunks")
        for _ in range(count):
            gap, blocks = uvarint(), uvarint()
            off += gap * 4096
            need(blocks and off < end and off + (blocks - 1) * 4096 < end, where, "lists a chunk outside its span")
            ranges.append((off, min(blocks * 4096, end - off)))
            off += blocks * 4096
        need(len(b) == at + 32 * count, where, "is damaged")
        for i, (o, n) in enumerate(ranges):
            yield o, n, b[at + 32 * i:at + 32 * i + 32]


def restore(repo, volume, backup, out):
    tree, size, data = repo.backup(volume, backup)
    with open(out, "xb") as f:
        for off, n, id in repo.chunks(tree, size):
            plain = repo.read(id, repo.chunk_key)
            need(len(plain) == n, f"chunk {id.hex()}", f"has {len(plain)} bytes where the leaf says {n}")
            f.seek(off)
            f.write(plain)
            data -= n
        f.truncate(size)
    need(data == 0, backup, "chunks are not as many bytes as the record says")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 5):
        sys.exit(__doc__)
    try:
        repository = Repository(sys.argv[1], read_masters(os.environ.get("MASTER_KEYS", "")))
        if len(sys.argv) == 2:
            repository.check()
        else:
            restore(repository, *sys.argv[2:])
    except (Damage, OSError, struct.error, ValueError, KeyError) as err:
        sys.exit(f"read.py: {err}")
