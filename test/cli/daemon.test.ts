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

t.test('--check looks at what the plugins of repositories are told, too', async t => {
  const file = `${t.testdir()}/bad.yaml`
  for (const [repository, told] of [
    ['{ plugin: file }', /repositories\.r: the options of plugin 'file' are wrong: it lacks "path"\n$/],
    ['{ plugin: s3, bucket: bucket, endpoint: s3.example, profile: p }', /: endpoint: must be an address such as https:/],
    ['{ plugin: files, path: /x }', /: the plugin 'files' does not load: .* Ours are file and s3; others are npm packages\.\n$/],
  ] as const) {
    writeFileSync(file, `${good}repositories: { r: ${repository} }\n`)
    t.match(await stillpointInThread(['daemon', '--config', file, '--check']), { code: 2, stdout: '', stderr: told })
  }
})
