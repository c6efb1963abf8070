#!/usr/bin/env python3
"""Restores a disk from a Stillpoint repository on files, with nothing of Stillpoint.

    restore-from-files.py REPOSITORY                          lists the restore points
    restore-from-files.py REPOSITORY POINT DISK OUTPUT        writes a disk as a raw image

docs/repository-format.md explains every byte. Needs Python 3.8 and the program `zstd`; for an encrypted repository the Python package
`cryptography` too, and its key in the environment as STILLPOINT_KEY.
"""
import base64, contextlib, hashlib, hmac, itertools, json, os, re, struct, subprocess, sys, unicodedata, urllib.parse, zlib

PACK_HEADER, BLOB_HEADER, ENTRY, TYPE_DATA, TYPE_NODE, TYPE_MANIFEST = 64, 64, 48, 1, 2, 4
Damaged = type('Damaged', (Exception,), {})
DAMAGE = (Damaged, ValueError, LookupError, struct.error)


def check(condition, message):
    if not condition:
        raise Damaged(message)


def decompress(frames, length):
    """zstd frames one after another, by the program: it takes any number of them at once."""
    done = subprocess.run(['zstd', '-dcq'], input=b''.join(frames), stdout=subprocess.PIPE)
    check(done.returncode == 0 and len(done.stdout) == length, 'a blob does not decompress')
    return done.stdout


def hkdf(master, salt, info):
    """RFC 5869 with SHA-256, for one block of output, which is all that is needed."""
    return hmac.new(hmac.new(salt, master, hashlib.sha256).digest(), info + b'\x01', hashlib.sha256).digest()


def aes_gcm_decrypt(key, nonce, data, associated):
    import cryptography.exceptions, cryptography.hazmat.primitives.ciphers.aead as ciphers
    with contextlib.suppress(cryptography.exceptions.InvalidTag):
        return ciphers.AESGCM(key).decrypt(nonce, data, associated)
    raise Damaged('bytes do not decrypt: another key, or they were changed')


class Repository:
    def __init__(self, path, passphrase=None):
        self.path = path
        self.info = json.loads(self.read('repository.json'))
        check(self.info['format'] == 1 and not self.info['requires'], 'the repository needs a newer reader')
        self.id = bytes.fromhex(self.info['id'].replace('-', ''))
        self.master = self.unlock(passphrase) if self.info['encrypted'] else None
        self.id_key = hkdf(self.master, self.id, b'stillpoint id') if self.master else None
        self.places = {TYPE_DATA: {}, TYPE_NODE: {}}
        self.load_index()

    def read(self, key, offset=0, length=-1):
        with open(os.path.join(self.path, *key.split('/')), 'rb') as file:
            file.seek(offset)
            return file.read(length)

    def keys(self, folder):
        """The keys below a folder, sorted. Names that begin with a dot are the file target's own."""
        return sorted(os.path.relpath(os.path.join(at, name), self.path) for at, _, names in os.walk(os.path.join(self.path, folder))
                      for name in names if not name.startswith('.'))

    def unlock(self, passphrase):
        check(passphrase, 'the repository is encrypted: put its key into STILLPOINT_KEY')
        for key in self.keys('keys'):
            with contextlib.suppress(Damaged, ValueError, KeyError):  # the slot of another key, or damaged
                slot = json.loads(self.read(key))
                stretched = hashlib.scrypt(unicodedata.normalize('NFC', passphrase).encode(), salt=base64.b64decode(slot['salt']), n=slot['n'],
                                           r=slot['r'], p=slot['p'], maxmem=256 * slot['n'] * slot['r'] + (1 << 20), dklen=32)
                return aes_gcm_decrypt(stretched, base64.b64decode(slot['nonce']), base64.b64decode(slot['wrapped']), self.id)
        raise Damaged('the key opens none of the slots')

    def load_index(self):
        state = json.loads(self.read('gc/state'))['index']
        avoid = {key.split('/', 1)[1] for key in self.keys('quarantine')}  # what they hold may be elsewhere as well
        rank = lambda pack: (os.path.exists(os.path.join(self.path, pack)), pack not in avoid)
        later = [key for key in self.keys('index') if int(key.split('/')[1]) > state['through']]
        for key in state['keys'] + later:
            data = self.read(key)
            check(hashlib.sha256(data[:-32]).digest() == data[-32:], key + ' is damaged')
            magic, packs, repository = struct.unpack_from('>4sI16s', data)
            check(magic == b'SPi1' and repository == self.id, key + ' is no index of this repository')
            at = 32
            for _ in range(packs):
                name, kind, count = struct.unpack_from('>32s4xB3xI', data, at)
                name, at = name.hex(), at + 44
                pack = ('packs' if kind == 1 else 'meta') + '/' + name[:2] + '/' + name
                places = self.places[TYPE_DATA if kind == 1 else TYPE_NODE]
                for _ in range(count):
                    offset, stored, _plain, _type, blob = struct.unpack_from('>IIIB3x32s', data, at)
                    if blob not in places or rank(pack) > rank(places[blob][0]):
                        places[blob] = (pack, offset, BLOB_HEADER + stored)
                    at += ENTRY

    def session_of(self, pack_header):
        magic, repository, session = struct.unpack_from('>4s4x16s16s', pack_header)
        check(magic == b'SPp1' and repository == self.id, 'this is no pack of this repository')
        return session

    def decrypt_blob(self, data, kind, session, wanted=None):
        """A blob's id, codec, plain length, and its bytes as the codec left them."""
        check(len(data) >= BLOB_HEADER, 'a blob is cut short')
        header, data = data[:BLOB_HEADER], data[BLOB_HEADER:]
        magic, typ, codec, flags, stored, length, counter, blob = struct.unpack_from('>4sBBBxIIQ32s', header)
        check(magic == b'SPb1' and typ == kind, 'there is no such blob where one should be')
        check(zlib.crc32(header[:60]) == struct.unpack_from('>I', header, 60)[0], 'the header of a blob is damaged')
        check(wanted in (None, blob) and bool(flags & 1) == bool(self.master), 'this is another blob')
        key = hkdf(self.master, session, b'stillpoint session') if self.master else None
        data = aes_gcm_decrypt(key, struct.pack('>4xQ', counter), data[:stored], header) if key else data[:stored]
        return blob, codec, length, data

    def open_blobs(self, blobs):
        """The plain bytes of what decrypt_blob returned, checked against their ids."""
        packed = [(length, data) for _, codec, length, data in blobs if codec == 1]
        unpacked = decompress([data for _, data in packed], sum(length for length, _ in packed)) if packed else b''
        plains, at = [], 0
        for blob, codec, length, plain in blobs:
            plain, at = (unpacked[at:at + length], at + length) if codec == 1 else (plain, at)
            digest = hmac.new(self.id_key, plain, hashlib.sha256).digest() if self.master else hashlib.sha256(plain).digest()
            check(len(plain) == length and digest == blob, 'the bytes of a blob are not those that were written')
            plains.append(plain)
        return plains

    def find_blob(self, blob, kind):
        check(blob in self.places[kind], 'the repository has no blob ' + blob.hex())
        pack, offset, length = self.places[kind][blob]
        session = self.session_of(self.read(pack, 0, PACK_HEADER)) if self.master else None
        return self.decrypt_blob(self.read(pack, offset, length), kind, session, blob)

    def points(self):
        """Manifest objects by name. A tombstone stands for a restore point that was forgotten; it begins with '{'."""
        found = {urllib.parse.unquote(key): self.read(key) for key in self.keys('points')}
        for key in self.keys('sessions'):
            with contextlib.suppress(*DAMAGE):  # of one that is damaged nobody can tell what it was
                session = json.loads(self.read(key))
                if session['state'] == 'committed':  # it is a restore point, whether or not it has got its own object
                    found.setdefault(urllib.parse.unquote(session['point']['key']), base64.b64decode(session['point']['manifest']))
        return {name: data for name, data in found.items() if data[:1] != b'{'}

    def manifest(self, name, data):
        found = json.loads(self.open_blobs([self.decrypt_blob(data[PACK_HEADER:], TYPE_MANIFEST, self.session_of(data))])[0])
        own = 'points/%s/%s-%s' % (found['machine'], re.sub('[-:.]', '', found['time']), found['id'][:8])
        check(own == name, name + ' has the manifest of ' + own)
        return found

    def chunks(self, disk):
        """Number and id of every chunk that is no hole, in order."""
        if disk['root'] is None:
            return
        count = -(-disk['size'] // disk['chunkSize'])
        level = next(level for level in range(8) if 256 ** (level + 1) >= count)
        yield from self.below(bytes.fromhex(disk['root']), level, 0)

    def below(self, node_id, level, first):
        node, = self.open_blobs([self.find_blob(node_id, TYPE_NODE)])
        check(node[:4] == b'SPn1' and node[4] == level, 'this is no node of a tree')
        at = 40
        for place in range(256):
            if node[8 + place // 8] >> place % 8 & 1:
                child, at = node[at:at + 32], at + 32
                number = first + place * 256 ** level
                yield from self.below(child, level - 1, number) if level else [(number, child)]

    def restore(self, disk, output):
        with open(output, 'xb') as file:
            file.truncate(disk['size'])
            chunks = self.chunks(disk)
            while some := list(itertools.islice(chunks, 64)):
                plains = self.open_blobs([self.find_blob(chunk, TYPE_DATA) for _, chunk in some])
                for (number, _), plain in zip(some, plains):
                    offset = number * disk['chunkSize']
                    check(len(plain) == min(disk['chunkSize'], disk['size'] - offset), 'a chunk has not the length of its place')
                    file.seek(offset)
                    file.write(plain)


def main(path, point=None, disk=None, output=None):
    repository = Repository(path, os.environ.get('STILLPOINT_KEY'))
    points = repository.points()
    if point is None:
        for name, data in points.items():
            try:
                for disk in (manifest := repository.manifest(name, data))['disks']:
                    print(name, disk['name'], disk['size'], manifest['consistency'])
            except DAMAGE as error:
                print('damaged:', name, error, file=sys.stderr)
        return
    check(point in points, 'there is no restore point ' + point)
    found = next((each for each in repository.manifest(point, points[point])['disks'] if each['name'] == disk), None)
    check(found, 'the restore point has no disk ' + str(disk))
    repository.restore(found, output)


if __name__ == '__main__':
    if len(sys.argv) not in (2, 5):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (*DAMAGE, ImportError, OSError) as error:
        sys.exit('restore-from-files: ' + str(error))
