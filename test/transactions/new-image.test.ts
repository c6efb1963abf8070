// makeImage: a file under its name is a whole image, or the one that was there.

import { existsSync, readFileSync } from 'node:fs'
import { readdir, stat, symlink, writeFile } from 'node:fs/promises'
import t from 'tap'
import { native, whyNotNative } from '../../src/base/native.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { makeImage, type NewImage } from '../../src/transactions/new-image.ts'
import { missing, qemuImg, scratchFolder } from '../helpers/qemu.ts'
import { testGraph } from '../helpers/test-graph.ts'

const SIZE = 1 << 20

t.test(
  'an image is made where nothing is, also where a killed daemon has left a part of one',
  { skip: missing('qemu-img') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const { graph } = testGraph()
    await qemuImg('create', '-q', '-f', 'qcow2', `${folder}/base`, String(SIZE))
    const backing = { file: 'base', format: 'qcow2' }
    for (const format of ['qcow2', 'raw'] as const) {
      const filename = `${folder}/new.${format}`
      await writeFile(`${filename}.partial`, Buffer.alloc(3 * SIZE, 'left behind'))
      await makeImage(graph, { filename, format, size: SIZE, replace: false, ...(format === 'qcow2' && { backing }) })
      const info = JSON.parse(await qemuImg('info', '--output=json', '-f', format, filename)) as Record<string, unknown>
      t.match(info, {
        'virtual-size': SIZE,
        ...(format === 'qcow2' && { 'backing-filename': 'base', 'backing-filename-format': 'qcow2' }),
      })
      if (format === 'qcow2') await qemuImg('check', '-q', filename)
      else t.ok(readFileSync(filename).equals(Buffer.alloc(SIZE)))
      await t.rejects(makeImage(graph, { filename, format, size: SIZE, replace: false }), {
        message: `Could not create '${filename}': it has come to be there meanwhile; choose another name`,
      })
    }
    t.same((await readdir(folder)).toSorted(), ['base', 'new.qcow2', 'new.raw'])
  },
)

t.test('what is there is made an image in its place, and stays the same file', { skip: missing('qemu-img') }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const { graph } = testGraph()
  const image: NewImage = { filename: `${folder}/there`, format: 'qcow2', size: SIZE, replace: true }
  await writeFile(image.filename, Buffer.alloc(SIZE, 'old'), { mode: 0o600 })
  const before = await stat(image.filename)
  await makeImage(graph, image)
  const after = await stat(image.filename)
  t.same([after.ino, after.mode], [before.ino, before.mode])
  await qemuImg('check', '-q', '-f', 'qcow2', image.filename)
  await symlink('elsewhere', `${folder}/link`)
  await makeImage(graph, { ...image, filename: `${folder}/link` })
  await qemuImg('check', '-q', '-f', 'qcow2', `${folder}/elsewhere`)
})

t.test(
  'an image that somebody uses is not made anew, and what cannot be made leaves nothing',
  { skip: native ? false : whyNotNative },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const { graph } = testGraph()
    const used = Buffer.alloc(SIZE, 'in use')
    const image: NewImage = { filename: `${folder}/used`, format: 'raw', size: SIZE, replace: true }
    await writeFile(image.filename, used)
    const node = await graph.open({ driver: 'file', filename: image.filename })
    const edge = graph.attach(node, { description: 'a guest', perm: Permission.write, shared: ALL & ~Permission.resize })
    await t.rejects(makeImage(graph, image), { message: /Failed to get .* lock/ })
    await graph.detach(edge)
    t.ok(readFileSync(image.filename).equals(used))

    await t.rejects(makeImage(graph, { ...image, filename: `${folder}/nowhere/new` }), {
      message: `Could not create '${folder}/nowhere/new': No such file or directory`,
    })
    const odd = { ...image, filename: `${folder}/odd`, format: 'qcow2', size: 1000 } as const
    await t.rejects(makeImage(graph, odd), { message: 'Image size must be a multiple of 512 bytes' })
    t.notOk(existsSync(`${folder}/odd`))
    t.same((await readdir(folder)).toSorted(), ['used'])
  },
)
