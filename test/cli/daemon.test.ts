// `stillpoint daemon`: what it makes of its configuration before anything runs.

import { writeFileSync } from 'node:fs'
import t from 'tap'
import { stillpoint, stillpointInThread } from '../helpers/stillpoint.ts'

const good = 'nbd: [{ tcp: 127.0.0.1 }]\nmachines:\n  db:\n    disks:\n      root: { image: ./root.raw }\n'

t.test('--check says that a file is good, and runs nothing', async t => {
  const file = `${t.testdir()}/good.yaml`
  writeFileSync(file, good)
  const [people, programs] = await Promise.all([
    stillpoint(['daemon', '--config', file, '--check']),
    stillpoint(['daemon', '--config', file, '--check', '--json']),
  ])
  t.match(people, { code: 0, stdout: `${file} is good: 1 machine with 1 disk, 1 place for NBD clients\n`, stderr: '' })
  t.match(programs, { code: 0, stdout: `${JSON.stringify({ file, good: true })}\n`, stderr: '' })
})

t.test('a mistake in the file is told with its place and exits with 2, with --check or without', async t => {
  const file = `${t.testdir()}/bad.yaml`
  writeFileSync(file, good.replace('machines', 'machine'))
  const told = new RegExp(`^stillpoint: ${file}:2:1: unknown key "machine"; did you mean "machines"\\?\\n$`)
  const [run, check, programs] = await Promise.all([
    stillpoint(['daemon', '--config', file]),
    stillpoint(['daemon', '--config', file, '--check']),
    stillpoint(['daemon', '--config', file, '--check', '--json']),
  ])
  for (const end of [run, check]) t.match(end, { code: 2, stdout: '', stderr: told })
  t.equal(programs.code, 2)
  t.match(JSON.parse(programs.stdout), { file, good: false, problems: [/^.*:2:1: unknown key/] })
})

t.test('the daemon runs with the settings and the log level', async t => {
  const file = `${t.testdir()}/good.yaml`
  writeFileSync(file, good)
  const { code, stdout } = await stillpoint(['daemon', '--config', file, '--log-level', 'warn'])
  t.equal(code, 0)
  t.match(JSON.parse(stdout), { settings: { file, machines: { db: {} } }, options: { logLevel: 'warn' } })
  const odd = await stillpoint(['daemon', '--config', file, '--log-level', 'loud'])
  t.match(odd, { code: 2, stderr: /Allowed choices are debug, info, warn, error, silent/ })
})

t.test('--check looks at what the plugins of repositories are told, too, and tells each mistake with its place', async t => {
  const file = `${t.testdir()}/bad.yaml`
  const s3 = 'plugin: s3, bucket: bucket, endpoint: "https://s3.example"'
  /** `^` is where the mistake is. */
  const cases: [repository: string, told: string][] = [
    ['^{ plugin: file }', '"repositories.r" lacks "path"'],
    ['{ plugin: file, path: /x, ^encription: {} }', 'unknown key "encription" in "repositories.r"; did you mean "encryption"?'],
    ['{ plugin: file, path: ^[/x] }', '"repositories.r.path" must be text, and is a list'],
    [
      '{ plugin: s3, bucket: bucket, endpoint: ^s3.example, profile: p }',
      '"repositories.r.endpoint" must be an address such as https://s3.example.net or http://10.0.0.7:7480, without a path',
    ],
    [`^{ ${s3} }`, '"repositories.r" needs either access-key and secret-key, or profile'],
    [
      `{ ${s3}, access-key: k, secret-key: ^123456 }`,
      '"repositories.r.secret-key" must say where the secret is, and not what it is: file:/PATH, credential:NAME or env:NAME',
    ],
    [`{ ${s3}, profile: p, ^conections: 2 }`, 'unknown key "conections" in "repositories.r"; did you mean "connections"?'],
    [`{ ${s3}, profile: p, connections: ^many }`, '"repositories.r.connections" must be a number, and is the text "many"'],
    [`{ ${s3}, profile: p, connections: ^0 }`, '"repositories.r.connections" must be a whole number from 1 to 256'],
    [`{ ${s3}, profile: p, retry: ^3 }`, '"repositories.r.retry" must be a time with its unit, such as 90s or 2m, not 3'],
    [
      `{ ${s3}, profile: p, addressing: ^host }`,
      '"repositories.r.addressing" must be "path" or "virtual", and is the text "host"',
    ],
    [
      '{ plugin: ^files, path: /x }',
      `"repositories.r.plugin" 'files' does not load: Cannot find package 'files'; did you mean "file"?`,
    ],
  ]
  for (const [marked, told] of cases) {
    const repository = `  r: ${marked}`
    writeFileSync(file, `${good}repositories:\n${repository.replace('^', '')}\n`)
    const { code, stdout, stderr } = await stillpointInThread(['daemon', '--config', file, '--check'])
    t.same([code, stdout, stderr], [2, '', `stillpoint: ${file}:7:${repository.indexOf('^') + 1}: ${told}\n`])
  }
  writeFileSync(file, `${good}repositories:\n  r: { plugin: file }\n  s: { plugin: file, pth: /x, path: /y }\n`)
  const both = await stillpointInThread(['daemon', '--config', file, '--check', '--json'])
  t.same((JSON.parse(both.stdout) as { problems: unknown }).problems, [
    `${file}:7:6: "repositories.r" lacks "path"`,
    `${file}:8:22: unknown key "pth" in "repositories.s"; did you mean "path"?`,
  ])
})
