// The how-to pages, followed to the letter, each on a host of its own.

import { mkdir, readFile, truncate, writeFile } from 'node:fs/promises'
import t from 'tap'
import { stepsOf } from '../helpers/guide.ts'
import { installed } from '../helpers/installed.ts'
import { qemuImg } from '../helpers/qemu.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { ScriptedS3 } from '../helpers/scripted-s3.ts'
import { missing, PYTHON, PYTHON_LIBNBD, run } from '../helpers/tools.ts'

const SIZE = 4 << 20

const machine = (image: string) => `machines: { web: { disks: { root: { image: ${image}, format: raw } } } }\n`

/** A disk of 4 MiB with an ext4, and in it one file. */
async function makeExt4(folder: string, image: string, notes: string) {
  await mkdir(`${folder}/files`, { recursive: true })
  await writeFile(`${folder}/files/notes`, `${notes}\n`)
  await writeFile(image, '')
  await truncate(image, SIZE)
  await run('mkfs.ext4', ['-q', '-F', '-d', `${folder}/files`, image])
}

t.test(
  'at 3 a.m. each case of the page gives the disk back',
  { skip: missing('bash', 'qemu-img', 'mkfs.ext4', 'debugfs', 'nbdinfo') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const site = await installed(stack, 'how-to/restore-at-3am.md')
    const at = (name: string) => `${site.folder}/srv/${name}`
    const image = at('disks/web-root.raw')
    await makeExt4(site.folder, image, 'as it was on Thursday')
    await site.drop('machine', machine(image))
    await site.drop('backup', `repositories: { offsite: { plugin: file, path: ${at('backup')} } }\n`)
    const guest = async () => {
      await using client = await site.nbd('web/root')
      await client.write(SIZE - 4096, Buffer.alloc(512, 7))
    }
    await site.run('stillpoint config reload && stillpoint repo init offsite && stillpoint backup start web --push offsite')
    await guest()
    await site.run('stillpoint backup start web --push offsite')
    await site.stop()
    const good = await readFile(image)
    await writeFile(image, Buffer.concat([good.subarray(0, SIZE / 2), randomBytes(SIZE / 2, 1)]))
    t.same(await site.follow({ 'systemctl start stillpoint': site.start }), [])
    t.ok((await readFile(image)).equals(good), 'in place')
    t.ok((await readFile(at('restore/root.raw'))).equals(good), 'in a new file')
    await writeFile(at('good'), good)
    for (const made of ['restore/root.qcow2', 'disks/web-now.qcow2'])
      t.match(await qemuImg('compare', '-U', '-f', 'raw', '-F', 'qcow2', at('good'), at(made)), 'identical', made)
  },
)

t.test(
  'a repository moves to S3 with its restore points, and the next backup goes on from them',
  { skip: missing('bash') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const store = stack.use(await ScriptedS3.listen())
    const site = await installed(stack, 'how-to/move-to-s3.md', {
      'https://s3.example.net': store.endpoint,
      // To make a key out of what the file holds takes long on purpose, and each command does it.
      '    encryption: { key: file:/etc/stillpoint/offsite.key }\n': '',
    })
    const image = `${site.folder}/srv/disks/web-root.raw`
    await writeFile(image, diskContent(SIZE, 3))
    for (const name of ['access', 'secret']) await writeFile(`${site.folder}/etc/stillpoint/s3-${name}.key`, `${name}\n`)
    const steps = await stepsOf('how-to/move-to-s3.md')
    t.equal(steps[0]?.file, '/etc/stillpoint/conf.d/backup.yaml')
    t.same(await site.follow({}, steps.slice(0, 1)), [])
    await site.run('stillpoint config reload && stillpoint repo init local && stillpoint backup start web --push local')
    await using guest = await site.nbd('web/root')
    await guest.write(0, randomBytes(5000, 4))
    await site.run('stillpoint backup start web --push local')
    await guest.write(100_000, randomBytes(5000, 5))
    t.same(await site.follow({}, steps.slice(1)), [])
    t.ok((await readFile(`${site.folder}/srv/restore/root.raw`)).equals(await guest.read(0, SIZE)))
    t.equal((await site.run('stillpoint point list offsite')).trim().split('\n').length, 1 + 3, 'with the two that were copied')
  },
)

t.test(
  'keys are rotated: the new one opens the repository, the old one does not',
  { skip: missing('bash', 'base64') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const site = await installed(stack, 'how-to/rotate-keys.md')
    const key = `${site.folder}/etc/stillpoint/offsite.key`
    await mkdir(`${site.folder}/media/usb`, { recursive: true })
    const steps = await stepsOf('how-to/rotate-keys.md')
    const made = steps.findIndex(({ text }) => text.includes('repo init')) + 1
    t.same(await site.follow({}, steps.slice(0, made)), [])
    const old = await readFile(key)
    t.same(await site.follow({}, steps.slice(made)), [])
    t.notOk((await readFile(key)).equals(old))
    // The same by the page about repositories, which goes on from one command to the next a little faster.
    const page = await readFile(new URL('../../../docs/repositories.md', import.meta.url), 'utf8')
    const [list, add, change, remove, ...more] = /^```sh\n([^]*?)^```$/m.exec(page)![1]!.trim().split('\n')
    t.same(more, [])
    const here = (command: string) => command.replaceAll(/file:(?=\/)/g, `file:${site.folder}`)
    const slot = /key slot (\w+)/.exec(await site.run(`${list}\n${here(add!)}`))![1]!
    await writeFile(`${site.folder}/etc/stillpoint/new.key`, 'of the page about repositories\n')
    await site.run(here(change!))
    await writeFile(key, 'of the page about repositories\n')
    await site.run(remove!.replace(/\w+$/, slot))
    t.notMatch(await site.run(list!), slot)
    await writeFile(key, old)
    t.match(await site.run('stillpoint repo stats offsite || echo "exit code $?"'), /exit code 12/)
  },
)

t.test(
  'nbdcopy takes a full backup, and the page’s program in Python brings it up to date',
  { skip: missing('bash', 'nbdcopy', 'qemu-img', PYTHON, PYTHON_LIBNBD) },
  async t => {
    await using stack = new AsyncDisposableStack()
    const site = await installed(stack, 'how-to/pull.md')
    await writeFile(`${site.folder}/srv/disks/web-root.raw`, diskContent(SIZE, 6))
    const steps = await stepsOf('how-to/pull.md')
    const full = steps.findIndex(({ text }) => text.includes('finish full')) + 1
    t.same(await site.follow({}, steps.slice(0, full)), [])
    await using guest = await site.nbd('web/root')
    await guest.write(SIZE - 100_000, randomBytes(3000, 7))
    t.same(await site.follow({}, steps.slice(full)), [])
    t.ok((await readFile(`${site.folder}/srv/restore/root.raw`)).equals(await guest.read(0, SIZE)))
  },
)
