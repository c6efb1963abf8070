// npm run demo: the whole road, with other people's programs and without them.

import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { diskContent } from './helpers/random-bytes.ts'

const main = fileURLToPath(new URL('../bench/demo/main.js', import.meta.url))

t.test("the demo on a user's image, without other people's programs, proves its backups and leaves the image alone", async t => {
  const image = `${t.testdir()}/mine.raw`
  writeFileSync(image, diskContent((20 << 20) + 512, 1))
  const sum = () => createHash('sha256').update(readFileSync(image)).digest('hex')
  const before = sum()
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, image], {
    encoding: 'utf8',
    env: { ...process.env, PATH: '/nonexistent' },
  })
  t.equal(status, 0, stderr + stdout)
  t.equal(stdout.match(/byte for byte the instant after \d+ writes/g)?.length, 4)
  t.match(stdout, /read by nbd-client-ts/)
  t.equal(sum(), before)
})

t.test('the demo says how it is called', async t => {
  const { status, stderr } = spawnSync(process.execPath, [main, '--fast'], { encoding: 'utf8' })
  t.equal(status, 2)
  t.match(stderr, /usage: npm run demo \[-- IMAGE\]/)
})
