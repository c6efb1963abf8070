// stillpoint image convert, judged by qemu-img; and all of it without native help, and over NBD.

import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { CliWorker } from '../helpers/cli-worker.ts'
import { imageZoo, qemuIo as io } from '../helpers/image-zoo.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const skip = missing('qemu-img', 'qemu-io')
const MiB = 1 << 20

const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const worker = stack.use(new CliWorker())
const folder = await scratchFolder(stack)
const ours = (...args: string[]) => worker.run('image', ...args)
const theirs = (...args: string[]) => attempt('qemu-img', args)
const images = skip ? [] : await imageZoo(folder)

t.test('convert copies every image to every format, as qemu-img finds', { skip }, async t => {
  const target = `${folder}/target`
  for (const [index, image] of images.entries()) {
    for (const args of [
      ['-O', 'raw'],
      ['-O', 'qcow2'],
      ['-O', 'qcow2', '-c', '-o', 'cluster_size=32k'],
      ['-O', 'raw', '-S', '0'],
    ].filter((_, way) => way === 3 || (way + index) % 2 === 0)) {
      const { code, stderr } = await ours('convert', ...args, image, target)
      t.equal(code, 0, `${image} ${args.join(' ')} ${stderr}`)
      t.equal((await theirs('compare', '-F', args[1]!, image, target)).stdout, 'Images are identical.\n')
      if (args[1] === 'qcow2') t.equal((await theirs('check', '-q', target)).code, 0)
    }
    const { blocks, size } = statSync(target)
    t.ok(blocks * 512 >= size, '-S 0: all is written')
  }
  const [, plain] = images as [string, string]
  await ours('convert', '-O', 'raw', plain, target)
  t.ok(statSync(target).blocks * 512 < MiB, 'zeroes take no space')

  writeFileSync(target, randomBytes(4 * MiB, 5))
  t.equal((await ours('convert', '-n', '-O', 'raw', plain, target)).code, 0, 'over what is there')
  t.equal((await theirs('compare', '-F', 'raw', plain, target)).stdout, 'Images are identical.\n')
  truncateSync(target, MiB)
  t.match((await ours('convert', '-n', '-O', 'raw', plain, target)).stderr, /output file is smaller than input file/)

  const overlay = `${folder}/overlay.qcow2`
  t.equal((await ours('convert', '-O', 'qcow2', '-B', `${folder}/base.qcow2`, '-F', 'qcow2', overlay, target)).code, 0)
  t.equal((await theirs('compare', overlay, target)).stdout, 'Images are identical.\n')
  t.ok(statSync(target).size < statSync(overlay).size + 65536, 'what is behind it is not copied')

  const top = `${folder}/top.qcow2`
  await ours('convert', '-O', 'qcow2', '--bitmaps', top, target)
  const bitmaps = async (image: string) =>
    (JSON.parse((await theirs('info', '--output=json', image)).stdout) as { 'format-specific': { data: { bitmaps: unknown } } })[
      'format-specific'
    ].data.bitmaps
  t.same(await bitmaps(target), await bitmaps(top))

  t.match((await ours('convert', '-c', '-O', 'raw', plain, target)).stderr, /Compression not supported/)
  t.equal((await ours('convert', '-m', '99', plain, target)).code, 2)
  const progress = await ours('convert', '-p', '-O', 'raw', plain, target)
  t.match(progress.stdout, /^ {4}\(0\.00\/100%\)\r[^]* {4}\(100\.00\/100%\)\r\n$/)
  const json = await ours('convert', '--json', '-O', 'raw', plain, target)
  t.same(JSON.parse(json.stdout), { file: plain, target, size: 4 * MiB, 'skipped-bitmaps': [] })
})

t.test(
  'a disk that ends within a sector is compressed to its end, and what is behind it in a larger target stays',
  { skip },
  async t => {
    const [odd, target, behind] = [`${folder}/odd.raw`, `${folder}/odd.qcow2`, `${folder}/behind.raw`]
    writeFileSync(odd, Buffer.alloc(3 * 65536 + 1000, 7))
    t.equal((await ours('convert', '-c', '-O', 'qcow2', odd, target)).code, 0)
    t.equal((await theirs('compare', odd, target)).stdout, 'Images are identical.\n')
    const map = JSON.parse((await theirs('map', '--output=json', target)).stdout) as { offset?: number }[]
    t.ok(
      map.every(({ offset }) => offset === undefined),
      'all of it is compressed',
    )

    await run('qemu-img', ['create', '-q', '-f', 'qcow2', target, '1M'])
    await io(target, 'write -q -P 9 0 1M')
    t.equal((await ours('convert', '-n', '-c', '-O', 'qcow2', odd, target)).code, 0)
    t.equal((await theirs('check', '-q', target)).code, 0)
    await ours('convert', '-O', 'raw', target, behind)
    t.same(readFileSync(behind), Buffer.concat([readFileSync(odd), Buffer.alloc(MiB - 3 * 65536 - 1000, 9)]))
  },
)

t.test('all of it works without native help, and over NBD', { skip: skip || missing('qemu-nbd') }, async t => {
  await using plain = new CliWorker({ STILLPOINT_NATIVE: 'off' })
  const target = `${folder}/by-node.qcow2`
  for (const args of [
    ['convert', '-O', 'qcow2', `${folder}/plain.qcow2`, target],
    ['compare', target, `${folder}/plain.qcow2`],
    ['check', target],
    ['resize', target, '+1M'],
    ['info', target],
    ['map', target],
  ])
    t.equal((await plain.run('image', ...args)).code, 0, args.join(' '))

  const socket = `${folder}/nbd.sock`
  const uri = `nbd+unix:///x?socket=${socket}`
  await run('qemu-img', ['create', '-q', '-f', 'raw', `${folder}/behind.raw`, '4M'])
  const serve = ['--fork', '-t', '--pid-file', `${folder}/nbd.pid`, '-x', 'x', '-k', socket, '-f', 'raw', `${folder}/behind.raw`]
  await run('qemu-nbd', serve)
  try {
    t.equal((await ours('convert', '-n', `${folder}/plain.qcow2`, uri)).code, 0)
    t.equal((await ours('compare', `${folder}/plain.qcow2`, uri)).code, 0)
    t.equal((await ours('convert', '-O', 'qcow2', uri, target)).code, 0)
    t.equal((JSON.parse((await ours('info', '--json', uri)).stdout) as { 'virtual-size': number })['virtual-size'], 4 * MiB)
    t.match((await ours('convert', `${folder}/plain.qcow2`, uri)).stderr, /cannot be made; use -n/)
  } finally {
    process.kill(Number(readFileSync(`${folder}/nbd.pid`, 'utf8')))
  }
  t.equal((await theirs('compare', '-F', 'raw', `${folder}/plain.qcow2`, `${folder}/behind.raw`)).code, 0)
  t.equal((await theirs('compare', target, `${folder}/plain.qcow2`)).code, 0)
  const opts = `driver=qcow2,file.driver=file,file.filename=${target}`
  // What the file is opened by may be left to its name.
  for (const other of [`driver=qcow2,file.filename=${target}`, `driver=qcow2,file.filename=file:${target}`])
    t.same(
      await ours('compare', '--image-opts', opts, other),
      { code: 0, signal: null, stdout: 'Images are identical.\n', stderr: '' },
      other,
    )
  // Each value has the type that its driver wants, and sizes may have units: as QEMU's tools take them.
  const typed = `driver=raw,offset=64k,size=1M,file.driver=blkdebug,file.inject-error.0.event=pwritev,file.inject-error.0.errno=5,file.inject-error.0.once=on,file.image.driver=null-co,file.image.size=2M,file.image.latency-ns=1`
  for (const program of [ours, theirs]) t.equal((await program('compare', '--image-opts', typed, typed)).code, 0)
  t.match((await ours('info', '--image-opts', 'driver=null-co,size=a lot')).stderr, /Invalid size 'a lot'/)
  t.match((await ours('info', 'nbds+unix:///?socket=x')).stderr, /over TLS is not opened by its address/)
})
