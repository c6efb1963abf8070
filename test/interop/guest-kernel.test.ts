// A guest whose kernel has our exports as block devices, by its own NBD driver: what it reads, writes, discards and mounts.

import { createHash } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import type net from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { createLog } from '../../src/base/log.ts'
import { TlsCredentials } from '../../src/base/tls-credentials.ts'
import { Turns } from '../../src/base/turns.ts'
import { Exports } from '../../src/nbd-server/exports.ts'
import { NodeExports } from '../../src/nbd-server/node-exports.ts'
import { NbdServer } from '../../src/nbd-server/server.ts'
import { scratchFolder } from '../helpers/control.ts'
import { HOST, noGuest, runGuest } from '../helpers/guest.ts'
import { makePki } from '../helpers/pki.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { testGraph } from '../helpers/test-graph.ts'
import { missing, run } from '../helpers/tools.ts'

const KIB = 1024
const MIB = 1 << 20
const SIZE = 12 * MIB
const GRANULARITY = 64 * KIB

const md5 = (bytes: Buffer) => createHash('md5').update(bytes).digest('hex')

t.test(
  'a guest’s kernel mounts an export, and what it wrote is there and in the bitmap',
  { skip: noGuest('nbd-client') || missing('mke2fs', 'e2fsck', 'debugfs', 'openssl') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const at = (name: string) => join(folder, name)
    await mkdir(at('tree'))
    const [kept, deleted, small] = [randomBytes(MIB + 77, 1), randomBytes(MIB, 2), randomBytes(MIB + 4096, 3)]
    await writeFile(at('tree/kept'), kept)
    await writeFile(at('tree/deleted'), deleted)
    await writeFile(at('disk'), '')
    await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-b', '4096', '-d', at('tree'), at('disk'), `${SIZE / KIB}k`])
    await writeFile(at('small'), small)
    const before = await readFile(at('disk'))

    const { graph } = testGraph()
    const nodeExports = new NodeExports({ graph, emit: () => undefined, turns: new Turns(), log: createLog('silent') })
    stack.use(nodeExports)
    const exports = new Exports()
    const open = async (name: string, options: object, writable: boolean) => {
      const node = await graph.open({ driver: 'raw', 'node-name': name, discard: 'unmap', file: options })
      await nodeExports.add(exports, { id: name, name, node, writable })
      return node
    }
    const disk = await open('disk', { driver: 'file', filename: at('disk') }, true)
    await open('fixed', { driver: 'file', filename: at('small') }, false)
    const rules = [{ on: 'read', errno: 'EIO', offset: MIB, length: 4096, times: 1000 }]
    await open('bad', { driver: 'inject-error', rules, file: { driver: 'null-co', size: 2 * MIB } }, true)
    const bitmap = disk.bitmaps.add({ name: 'b', granularity: GRANULARITY })

    const pki = await makePki(at('pki'))
    const tls = { mode: 'forced', credentials: await TlsCredentials.x509(pki, { verifyPeer: true }) } as const
    const lines: string[] = []
    const log = createLog('warn', { write: line => lines.push(line) })
    const listen = async (more: object) => {
      const server = stack.use(await NbdServer.listen({ host: '127.0.0.1', port: 0 }, { exports, log, ...more }))
      return { server, port: (server.address as net.AddressInfo).port }
    }
    const [plain, secure] = [await listen({}), await listen({ tls })]

    const said = await runGuest({
      modules: ['nbd'],
      programs: ['nbd-client'],
      files: Object.fromEntries(
        await Promise.all(
          ['ca-cert.pem', 'client-cert.pem', 'client-key.pem'].map(
            async name => [name, await readFile(join(pki, name))] as const,
          ),
        ),
      ),
      script: `
say() { echo "@$1=$2"; }
attach() { nbd-client ${HOST} "$1" "$2" -N "$3" -b 4096 $4 > /tmp/log 2>&1 || { say failed "$3"; cat /tmp/log; }; }
attach ${plain.port} /dev/nbd0 disk '-C 2'
attach ${plain.port} /dev/nbd1 fixed
attach ${plain.port} /dev/nbd2 bad
attach ${secure.port} /dev/nbd3 disk '-certfile /client-cert.pem -keyfile /client-key.pem -cacertfile /ca-cert.pem -tlshostname localhost'

queue=/sys/block/nbd0/queue
say size $(blockdev --getsize64 /dev/nbd0)
say cache "$(cat $queue/write_cache)"
say fua $(cat $queue/fua)
say discards $(test $(cat $queue/discard_max_bytes) -gt 0 && echo yes)
say block $(cat $queue/logical_block_size)
say before $(md5sum < /dev/nbd0)
say overTls $(md5sum < /dev/nbd3)

mount -t ext4 /dev/nbd0 /mnt || { say failed mount; dmesg | tail; }
say kept $(md5sum < /mnt/kept)
rm /mnt/deleted
head -c 1000000 /dev/urandom > /mnt/new
say new $(md5sum < /mnt/new)
sync
fstrim /mnt && say trimmed yes
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
say after $(md5sum < /dev/nbd0)

say fixed $(md5sum < /dev/nbd1)
say readOnly $(blockdev --getro /dev/nbd1)
dd if=/dev/zero of=/dev/nbd1 bs=4k count=1 2> /dev/null || say writeToFixed refused
dd if=/dev/nbd2 of=/dev/null bs=4k skip=256 count=1 iflag=direct 2> /dev/null || say readOfBad failed
dd if=/dev/nbd2 of=/dev/null bs=4k skip=300 count=1 iflag=direct 2> /dev/null && say readBehindIt done
for disk in 0 1 2 3; do nbd-client -d /dev/nbd$disk > /dev/null; done
say end reached`,
    })
    const found = Object.fromEntries(
      [...said.matchAll(/^@(\w+)=(.*?)(?: +-)?\r?$/gm)].map(([, key, value]) => [key!, value!] as const),
    )
    t.equal(found['end'], 'reached', said)
    const after = await readFile(at('disk'))
    const { new: written, ...rest } = found
    t.same(rest, {
      size: String(SIZE),
      cache: 'write back',
      fua: '1',
      discards: 'yes',
      block: '4096',
      before: md5(before),
      overTls: md5(before),
      kept: md5(kept),
      trimmed: 'yes',
      after: md5(after),
      fixed: md5(small),
      readOnly: '1',
      writeToFixed: 'refused',
      readOfBad: 'failed',
      readBehindIt: 'done',
      end: 'reached',
    })
    await run('e2fsck', ['-f', '-n', at('disk')])
    for (const [name, hash] of [
      ['kept', md5(kept)],
      ['new', written],
    ] as const) {
      await run('debugfs', ['-R', `dump ${name} ${at('out')}`, at('disk')])
      t.equal(md5(await readFile(at('out'))), hash, name)
    }
    const dirty = Buffer.alloc(SIZE / GRANULARITY)
    for (const { offset, length } of bitmap.dirtyRanges({ offset: 0, length: SIZE }))
      dirty.fill(1, offset / GRANULARITY, (offset + length) / GRANULARITY)
    for (let index = 0; index < dirty.length; index++) {
      const [from, to] = [index * GRANULARITY, (index + 1) * GRANULARITY]
      if (!dirty[index] && !before.subarray(from, to).equals(after.subarray(from, to)))
        t.fail(`no mark for the change at ${from}`)
    }
    t.ok(dirty.includes(0) && dirty.includes(1), 'what was not written to has no mark')
    t.same(
      lines.filter(line => !/EPERM|Input\/output error/.test(line)),
      [],
    )
    for (const { server } of [plain, secure]) t.equal(server.connections, 0, 'the guest has left')
  },
)
