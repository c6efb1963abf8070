// Sizes, durations and likely words.

import t from 'tap'
import { nearest } from '../../src/base/nearest.ts'
import { formatSize, parseDuration, parseSize } from '../../src/base/units.ts'

t.test('sizes are powers of 1024, as in QEMU', async t => {
  const sizes: [string, number | undefined][] = [
    ['0', 0],
    ['512', 512],
    ['1k', 1024],
    ['10G', 10 * 2 ** 30],
    ['1.5T', 1.5 * 2 ** 40],
    ['512MiB', 2 ** 29],
    ['512 MiB', 2 ** 29],
    ['7P', 7 * 2 ** 50],
    ['8P', undefined], // no longer exact
    ['10GB', undefined],
    ['-1', undefined],
    ['1.3', undefined],
    ['', undefined],
    ['G', undefined],
    ['1e3', undefined],
    ['0x10', undefined],
    ['1 G G', undefined],
  ]
  for (const [text, bytes] of sizes) t.equal(parseSize(text), bytes, JSON.stringify(text))
})

t.test('durations have units', async t => {
  const durations: [string, number | undefined][] = [
    ['500ms', 500],
    ['10s', 10_000],
    ['5m', 300_000],
    ['24h', 86_400_000],
    ['1h30m', 5_400_000],
    ['1h 30m', 5_400_000],
    ['7d', 604_800_000],
    ['0s', 0],
    ['10', undefined],
    ['h', undefined],
    ['', undefined],
    ['1.5h', undefined],
    ['-1s', undefined],
    ['1w', undefined],
    ['10000000000000d', undefined],
  ]
  for (const [text, ms] of durations) t.equal(parseDuration(text), ms, JSON.stringify(text))
})

t.test('sizes are told in three digits', async t => {
  t.same(
    [0, 1, 1023, 1024, 1536, 10 * 2 ** 30, 1.234 * 2 ** 20, 12.34 * 2 ** 20, 123.4 * 2 ** 20, 1000 * 1024, 2 ** 52].map(
      formatSize,
    ),
    ['0 B', '1 B', '1023 B', '1 KiB', '1.5 KiB', '10 GiB', '1.23 MiB', '12.3 MiB', '123 MiB', '1000 KiB', '4 PiB'],
  )
})

t.test('a likely word is named, an unlikely one is not', async t => {
  const words = ['state', 'control', 'machines', 'read-only', 'nbd']
  t.equal(nearest('sate', words), 'state')
  t.equal(nearest('stata', words), 'state')
  t.equal(nearest('tsate', words), 'state', 'two letters swapped')
  t.equal(nearest('Control', words), 'control')
  t.equal(nearest('READ_ONLY', words), 'read-only')
  t.equal(nearest('machine', words), 'machines')
  t.equal(nearest('ndb', words), 'nbd')
  t.equal(nearest('retention', words), undefined)
  t.equal(nearest('', words), undefined)
  t.equal(nearest('x'.repeat(100_000), words), undefined)
  t.equal(nearest('x', []), undefined)
})
