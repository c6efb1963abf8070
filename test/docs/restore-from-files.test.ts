// The reader in Python, which has nothing of ours, restores what we have pushed; qemu-img compares.

import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { FileTarget } from '../../plugins/file/file-target.ts'
import { collect } from '../../src/repository/collector.ts'
import { forget } from '../../src/repository/points.ts'
import { verify } from '../../src/repository/verify.ts'
import { bitmapOf, done, newRepository, pushDisks, sealer, sourceOf } from '../helpers/push-point.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536
const program = fileURLToPath(new URL('../../../docs/restore-from-files.py', import.meta.url))
const works = (command: string, ...args: string[]) => spawnSync(command, args).status === 0
const missing = !works('python3', '--version') ? 'python3 is missing' : !works('zstd', '--version') ? 'zstd is missing' : false
const noCryptography = missing || (!works('python3', '-c', 'import cryptography') && "python3's cryptography is missing")
const noQemuImg = !works('qemu-img', '--version')

for (const passphrase of [undefined, 'schlüssel'])
  t.test(
    `the reader in Python restores every point of ${passphrase ? 'an encrypted' : 'a'} repository`,
    { skip: passphrase ? noCryptography : missing },
    async t => {
      await using stack = new AsyncDisposableStack()
      const folder = await scratchFolder(stack)
      mkdirSync(`${folder}/out`)
      await using target = await FileTarget.open(`${folder}/repository`)
      const repository = await newRepository(target, { passphrase })
      const python = (...args: string[]) =>
        spawnSync('python3', [program, `${folder}/repository`, ...args], {
          encoding: 'utf8',
          env: { ...process.env, ...(passphrase !== undefined && { STILLPOINT_KEY: passphrase }) },
        })

      const kept = new Map<string, Buffer>()
      let disk = Buffer.alloc(300 * CHUNK + 1000) // two levels of tree, mostly holes
      disk.set(diskContent(40 * CHUNK, 1), 10 * CHUNK)
      disk.set(diskContent(3 * CHUNK + 1000, 2), 297 * CHUNK)
      const forgotten: string[] = []
      for (let round = 0; round < 3; round++) {
        const other = diskContent(3 * CHUNK, round)
        const { key } = await pushDisks(
          repository,
          [
            {
              name: 'root',
              source: sourceOf(disk),
              checkpoint: `c${round}`,
              changes: { bitmap: bitmapOf([{ offset: round * 12 * CHUNK - 5, length: 9 }]), since: `c${round - 1}` },
            },
            { name: 'data', source: sourceOf(other) },
          ],
          { machine: 'my vm' },
        )
        if (round === 1) forgotten.push(key)
        else kept.set(`${key} root`, disk)
        if (round === 0) kept.set(`${key} data`, other)
        disk = Buffer.from(disk)
        disk.set(randomBytes(9, round), (round + 1) * 12 * CHUNK - 5)
        if (round === 1) disk = Buffer.concat([disk, randomBytes(CHUNK, 5)])
      }
      for (const key of forgotten) await forget(repository, key)
      t.match(await collect(repository, { graceMs: 0 }), { state: 'deleted' })

      const { stdout, stderr, status } = python()
      t.equal(status, 0, stderr)
      const listed = new Set(stdout.trim().split('\n'))
      t.equal(listed.size, 4, 'two restore points of two disks')
      for (const [name, { length }] of kept) t.ok(listed.has(`${name} ${length} crash`), name)
      for (const [name, bytes] of kept) {
        const [, key = '', disk = ''] = /^(.*) (\w+)$/.exec(name) ?? []
        const out = `${folder}/out/${kept.size}-${key.slice(-8)}-${disk}`
        const { status, stderr } = python(key, disk, out)
        t.equal(status, 0, stderr)
        if (noQemuImg) t.ok(readFileSync(out).equals(bytes))
        else {
          writeFileSync(`${out}.model`, bytes)
          const compared = spawnSync('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', out, `${out}.model`], { encoding: 'utf8' })
          t.equal(compared.stdout, 'Images are identical.\n', compared.stderr)
        }
      }
      // A commit whose second half nobody has done; a session that is damaged is nothing, and one that has not committed neither.
      const committed = [...kept.keys()].at(-1)!.split(' root')[0]!
      const whole = (await target.get(committed)).body
      const manifest = Buffer.from(whole).toString('base64')
      await target.delete([committed])
      for (const [id, record] of Object.entries({
        a: JSON.stringify({ state: 'committed', point: { key: committed, manifest } }),
        b: JSON.stringify({ state: 'active', point: { key: `${committed}0`, manifest } }),
        c: '{"state": "committed", "po',
      }))
        await target.put(`sessions/${id}`, Buffer.from(record))
      t.equal(python().stdout, stdout)
      const halfway = python(committed, 'root', `${folder}/out/halfway`)
      t.equal(halfway.status, 0, halfway.stderr)
      t.ok(readFileSync(`${folder}/out/halfway`).equals(kept.get(`${committed} root`)!))
      await target.put(committed, whole)
      await target.delete(['sessions/a', 'sessions/b', 'sessions/c'])
      // A damaged pack, whose chunks a later backup has uploaded anew.
      const [pack] = await Array.fromAsync(target.list('packs/'))
      const broken = Buffer.from((await target.get(pack!.key)).body)
      for (let at = 100; at < broken.length; at += 4096) broken[at]! ^= 1
      await target.put(pack!.key, broken)
      const older = [...kept.keys()][0]!.split(' root')[0]!
      const { damagedPacks } = await done(verify(repository, { level: 'scrub', quarantine: true, sealer }))
      t.match(damagedPacks, [{ key: pack!.key }])
      for (const [name, bytes] of kept)
        await pushDisks(repository, [{ name: name.split(' ').at(-1)!, source: sourceOf(bytes) }], { machine: 'healer' })
      const healed = python(older, 'root', `${folder}/out/healed`)
      t.equal(healed.status, 0, healed.stderr)
      t.ok(readFileSync(`${folder}/out/healed`).equals(kept.get(`${older} root`)!))
      // Of another restore point, and of none: neither is taken for it, nor hides the others.
      const key = (await repository.pointKeys()).find(key => key.startsWith('points/healer/'))!
      for (const [body, sentence] of [
        [(await target.get(older)).body, `has the manifest of ${older}`],
        [Buffer.alloc(7), 'restore-from-files: '],
        [Buffer.alloc(0), 'restore-from-files: '],
      ] as const) {
        await target.put(key, body)
        const refused = python(key, 'root', `${folder}/out/x`)
        t.match(refused, { status: 1, stderr: /^restore-from-files: / })
        t.match(refused.stderr, sentence)
        const all = python()
        t.match(all, { status: 0, stderr: new RegExp(`^damaged: ${key} `) })
        t.ok(all.stdout.includes(`${older} root `))
      }
      t.match(python('points/x/y', 'root', `${folder}/out/x`).stderr, /there is no restore point/)
      t.match(python(older, 'root', `${folder}/out/healed`), { status: 1, stderr: /^restore-from-files: .*File exists/ })
      t.ok(readFileSync(program, 'utf8').split('\n').length <= 201, 'and it is short')
    },
  )
