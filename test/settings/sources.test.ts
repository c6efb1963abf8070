// A configuration of several files: how they are one, where a mistake stands, and what all of it comes to.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { effective, yamlOf } from '../../src/settings/effective.ts'
import { loadSettings, parseFiles, parseSettings, readSources } from '../../src/settings/load.ts'
import { differences } from '../../src/settings/sources.ts'

const config = fileURLToPath(new URL('../../../config/', import.meta.url))
const parse = (text: string, file: string) => parseSettings(Buffer.from(text), file)

t.test('what is dropped in comes over the file before: maps key by key, all else as a whole', async t => {
  const dir = t.testdir({
    's.yaml':
      'state: /a\nnbd: [{ unix: /n1 }, { unix: /n2 }]\nmachines:\n  db: { disks: { root: { image: r.raw } } }\nscratch: { limit: 1G }\n',
    'conf.d': {
      '10-more.yaml': 'machines:\n  db: { disks: { data: { image: d.raw } } }\n  web: { disks: { root: { image: w.raw } } }\n',
      '20-last.yml': 'state: /b\nnbd: [{ unix: /n3 }]\nscratch: { timeout: 5s }\n',
      '.hidden.yaml': 'nonsense',
      'readme.txt': 'nonsense',
      '30-empty.yaml': '# nothing\n',
    },
  })
  const { state, nbd, machines, scratch } = await loadSettings(join(dir, 's.yaml'))
  t.equal(state, '/b')
  t.same(nbd, [{ unix: '/n3', mode: 0o660 }])
  t.same(Object.keys(machines), ['db', 'web'])
  t.same(Object.keys(machines['db']!.disks), ['root', 'data'])
  t.equal(machines['db']!.disks['data']!.image, join(dir, 'd.raw'), 'from the folder of the main file')
  t.match(scratch, { limit: 2 ** 30, timeoutMs: 5000 })
})

t.test('a mistake is told where it stands, whichever file that is', async t => {
  const dir = t.testdir({
    's.yaml': 'machines:\n  db: { disks: { root: { image: /r } } }\nstat: /a\n',
    'conf.d': {
      '10.yaml': 'machines:\n  db: { disks: { root: { imag: /x } } }\n',
      '20.yaml': 'machines:\n  web: { disks: { root: { image: /r } } }\nscratch: { limit: 10GB }\n',
    },
  })
  const told = async () => {
    try {
      await loadSettings(join(dir, 's.yaml'))
      return 'nothing'
    } catch (error) {
      return (error as Error).message.replaceAll(`${dir}/`, '')
    }
  }
  t.equal(
    await told(),
    [
      'conf.d/10.yaml:2:26: unknown key "imag" in "machines.db.disks.root"; did you mean "image"?',
      'conf.d/20.yaml:3:19: "scratch.limit" must be a size such as 512M or 10GiB, in powers of 1024, not "10GB"',
      's.yaml:3:1: unknown key "stat"; did you mean "state"?',
    ].join('\n'),
  )
  writeFileSync(join(dir, 's.yaml'), 'machines:\n  db: { disks: { root: { image: /r } } }\n')
  writeFileSync(join(dir, 'conf.d/10.yaml'), '')
  writeFileSync(join(dir, 'conf.d/20.yaml'), 'machines:\n  web: { disks: { root: { image: /r } } }\n')
  t.equal(
    await told(),
    'conf.d/20.yaml:2:34: "machines.web.disks.root.image" is the same image as "machines.db.disks.root.image": /r',
  )
  writeFileSync(join(dir, 'conf.d/10.yaml'), 'a: [')
  t.match(await told(), /^conf\.d\/10\.yaml:1:\d+: a "\]" is missing/)
})

t.test('the effective configuration is a configuration, and means the same', async t => {
  const example = readFileSync(join(config, 'stillpoint.example.yaml'), 'utf8')
  const others = [
    '{}',
    'state: x\nnbd: [{ tcp: "0.0.0.0:1", tls: none }]\nmachines: { a: { disks: { r: { image: i }, q: { image: j, format: qcow2 }, o: { image: k, read-only: true } } } }',
    'repositories: { constructor: { plugin: file, path: p, scratch: { a: [1] } } }\nsessions: { expire: 90s }\nscratch: { limit: 12345 }',
  ]
  for (const text of [example, ...others]) {
    const file = { file: '/etc/stillpoint/s.yaml', bytes: Buffer.from(text) }
    const settings = parseFiles([file])
    const shown = yamlOf(effective(readSources([file]).data, settings))
    t.same(parse(shown, file.file), settings, text)
    t.match(shown, /^scratch:\n {2}path: \/|\n {2}path: \//)
    t.same(differences(readSources([file]).data, readSources([file]).data), [])
  }
  t.same(differences({ a: { b: 1, c: [1] }, d: 2 }, { a: { b: 1, c: [2] }, e: 3 }), [['a', 'c'], ['d'], ['e']])
})
