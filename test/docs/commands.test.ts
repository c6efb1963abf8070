// The commands of all the documentation: each page has a test that runs them, what the program is called with it takes, and what is shown as
// a configuration is one. And the pages that nobody else follows, followed.

import { readdirSync, readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { basename, join, relative } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { Command } from 'commander'
import t from 'tap'
import { messageOf } from '../../src/base/errors.ts'
import { createProgram } from '../../src/cli/program.ts'
import { readTargets } from '../../src/push/target.ts'
import { parseFiles } from '../../src/settings/load.ts'
import { stepsOf } from '../helpers/guide.ts'
import { installed } from '../helpers/installed.ts'
import { diskContent } from '../helpers/random-bytes.ts'
import { callsOf } from '../helpers/shell-calls.ts'
import { missing, run } from '../helpers/tools.ts'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const textOf = (path: string) => readFileSync(join(root, path), 'utf8')
const pages = readdirSync(join(root, 'docs'), { recursive: true, withFileTypes: true })
  .filter(entry => entry.isFile() && entry.name.endsWith('.md'))
  .map(entry => relative(root, join(entry.parentPath, entry.name)))
  .concat('README.md', 'CONTRIBUTING.md')

/** Of one language, where one is named. */
const blocksOf = (page: string, ...languages: string[]) =>
  [...textOf(page).matchAll(/^```(\w+)\n([^]*?)^```$/gm)]
    .filter(([, language]) => languages.includes(language!))
    .map(([, , block]) => block!)

/** What of a block is typed: all of it, or what stands behind the prompts. */
const typedIn = (page: string) => [
  ...blocksOf(page, 'sh'),
  ...blocksOf(page, 'console').flatMap(block => [...block.matchAll(/^[$#] (.*)$/gm)].map(([, command]) => command!)),
  ...[...textOf(page).matchAll(/^ {4}(stillpoint .*)$/gm)].map(([, command]) => command!),
]

/** Who runs the commands of a page. */
const runBy: Readonly<Record<string, string>> = {
  'README.md': 'test/cli/tour.test.ts',
  'docs/tutorial.md': 'test/docs/guide.test.ts',
  'docs/how-to/qemu-vm.md': 'test/docs/guide.test.ts',
  'docs/how-to/restore-at-3am.md': 'test/docs/how-to.test.ts',
  'docs/how-to/move-to-s3.md': 'test/docs/how-to.test.ts',
  'docs/how-to/rotate-keys.md': 'test/docs/how-to.test.ts',
  'docs/how-to/pull.md': 'test/docs/how-to.test.ts',
  'docs/disks.md': 'test/docs/disks.test.ts',
  'docs/images.md': 'test/docs/images.test.ts',
  'docs/repositories.md': 'test/docs/repositories.test.ts',
  'docs/bitmaps.md': 'test/docs/commands.test.ts',
  'docs/control-socket.md': 'test/docs/commands.test.ts',
  'docs/metrics.md': 'test/docs/commands.test.ts',
  'docs/nbd.md': 'test/docs/commands.test.ts',
  'docs/schedules.md': 'test/docs/commands.test.ts',
  'docs/status-page.md': 'test/docs/commands.test.ts',
  // In a Debian that systemd has booted, beside the suite.
  'docs/install.md': 'scripts/package-judge',
  'docs/service.md': 'scripts/package-judge',
}

/** Examples, one for each option; each command has a test of its own in test/cli/. */
const EXAMPLES = 'docs/command-line.md'

t.test('every page with commands has a test that runs them', async t => {
  t.same(pages.filter(page => page !== EXAMPLES && typedIn(page).length > 0).toSorted(), Object.keys(runBy).toSorted())
  for (const [page, runner] of Object.entries(runBy))
    t.ok(page === 'README.md' ? textOf(runner).includes('README') : textOf(runner).includes(basename(page)), `${runner}: ${page}`)
})

/** A program that does nothing, and what it says of being called so; undefined where it would have begun. */
async function objectionTo(words: readonly string[]): Promise<string | undefined> {
  const program = createProgram({ runDaemon: async () => undefined })
  let told = ''
  const quiet = (command: Command) => {
    command.configureOutput({ writeOut: () => undefined, writeErr: said => (told += said) })
    if (command.commands.length === 0) command.action(() => undefined)
    command.commands.forEach(quiet)
  }
  quiet(program)
  try {
    await program.parseAsync(words, { from: 'user' })
    return undefined
  } catch (error) {
    if ((error as { exitCode?: number }).exitCode === 0) return undefined // help
    return told || messageOf(error)
  }
}

/** With a part of what they need, in a sentence that says the rest; and what is no call. */
const SPOKEN_OF = new Set(['schedule show --json', 'serve db.zip', 'id', 'session'])

/** Whether only the command is named, to speak of it. */
function isName(words: readonly string[]) {
  let command: Command | undefined = createProgram({ runDaemon: async () => undefined })
  for (const word of words) command = command?.commands.find(one => one.name() === word)
  return command !== undefined
}

t.test('each call of the program in the documentation is one that it takes', async t => {
  let calls = 0
  const wrong: string[] = []
  for (const page of pages) {
    const inline = [
      ...textOf(page)
        .replaceAll(/^```[^]*?^```$/gm, '')
        .matchAll(/`(stillpoint (?!.*\[options\])[a-z][^`]*)`/g),
    ].map(([, one]) => one!)
    for (const [snippet, isInline] of [
      ...typedIn(page).map(one => [one, false] as const),
      ...inline.map(one => [one, true] as const),
    ])
      for (const words of callsOf(snippet, 'stillpoint')) {
        calls++
        if (isInline && (isName(words) || SPOKEN_OF.has(words.join(' ')))) continue
        const objection = await objectionTo(words)
        if (objection !== undefined) wrong.push(`${page}: stillpoint ${words.join(' ')}: ${objection}`)
      }
  }
  t.same(wrong, [])
  t.ok(calls > 300, `${calls} calls`)
  t.match(await objectionTo(['backup', 'start', 'db', '--psuh', 'x']), /unknown option/)
  t.match(await objectionTo(['backup', 'strat']), /unknown command/)
})

t.test('a shell’s calls are found wherever they stand', async t => {
  const script = `# stillpoint no
if x "$uri" > a; then stillpoint a 'b "c' d\\ e; else A=1 stillpoint "f $g" 2>&1 | jq; fi
first=$(stillpoint h < /dev/null | sed q) # stillpoint no
cat > f <<'END'
stillpoint no
END
runuser -u stillpoint -- stillpoint i \\
  --j=k & source <(stillpoint l); systemctl stop stillpoint; until stillpoint m 2> n; do stillpoint o > p; done`
  t.same(callsOf(script, 'stillpoint'), [['a', 'b "c', 'd e'], ['f $g'], ['h'], ['i', '--j=k'], ['l'], ['m'], ['o']])
})

t.test('what is shown as a configuration is one', async t => {
  const base = `machines:
  db: { disks: { root: { image: /r.raw } } }
  web: { disks: { root: { image: /w.raw } } }
schedules:
  nightly: { machines: [db], repository: elsewhere }
repositories:
  local: { plugin: file, path: /b }
  elsewhere: { plugin: file, path: /o }
`
  let blocks = 0
  for (const page of pages)
    for (const block of blocksOf(page, 'yaml')) {
      // Prometheus has one, too; and a comment for an editor says nothing.
      if (block.startsWith('# prometheus.yml') || /^(#.*\n)*$/.test(block)) continue
      blocks++
      const others = /^ {2}offsite:/m.test(block) ? base : `${base}  offsite: { plugin: file, path: /o }\n`
      const files = [
        { file: '/base.yaml', bytes: Buffer.from(others) },
        { file: `/${page}`, bytes: Buffer.from(block) },
      ] as const
      await t.resolves(async () => readTargets(parseFiles(files).repositories), `${page}:\n${block}`)
    }
  t.ok(blocks > 15, `${blocks} of them`)
})

const [PROMTOOL, SSH] = [missing('promtool'), missing('ssh')]

t.test('what is to be told to other programs, they take', async t => {
  const prometheus = blocksOf('docs/metrics.md', 'yaml').find(block => block.startsWith('# prometheus.yml'))
  const folder = t.testdir({
    'prometheus.yml': prometheus!,
    'stillpoint.rules.yml': textOf('docs/prometheus/stillpoint.rules.yml'),
  })
  if (PROMTOOL) t.comment(PROMTOOL)
  else t.match(await run('promtool', ['check', 'config', `${folder}/prometheus.yml`]), /SUCCESS/)
  const [forward] = blocksOf('docs/status-page.md', 'sh')
  const [program, ...words] = forward!.trim().split(' ')
  t.equal(program, 'ssh')
  // -G says what would be done, and does nothing.
  if (SSH) t.comment(SSH)
  else t.match(await run('ssh', ['-G', ...words]), /^localforward 9751 \[127\.0\.0\.1\]:9751$/m)
})

t.test('schedules, and the line for Nagios, do what their pages say', { skip: missing('bash', 'nbdcopy') }, async t => {
  await using stack = new AsyncDisposableStack()
  const site = await installed(stack, 'schedules.md')
  const at = (path: string) => `${site.folder}${path}`
  const bytes = diskContent(1 << 20, 1)
  for (const name of ['db', 'web']) await writeFile(at(`/srv/disks/${name}.raw`), bytes)
  await site.drop(
    'disks',
    `machines: { db: { disks: { root: { image: ${at('/srv/disks/db.raw')}, format: raw } } }, web: { disks: { root: { image: ${at('/srv/disks/web.raw')}, format: raw } } } }
repositories: { offsite: { plugin: file, path: ${at('/srv/backup')} } }
`,
  )
  const steps = await stepsOf('schedules.md')
  const blocks = steps.filter(({ language }) => language === 'yaml')
  for (const [index, { text: block }] of blocks.entries()) await site.drop(`schedule-${index}`, block)
  await site.run('stillpoint config reload && stillpoint repo init offsite')
  const page = textOf('docs/schedules.md')
  const said = [...page.matchAll(/`(stillpoint schedule (?:list|run|show)[^`]*)`/g)].map(([, command]) => command!)
  t.same(said.slice(0, 3), ['stillpoint schedule list', 'stillpoint schedule show nightly', 'stillpoint schedule run nightly'])
  for (const command of said.slice(0, 3)) await site.run(command)
  t.match(await site.run('stillpoint schedule show nightly'), / done +asked for; db\/\S+; web\/\S+/)
  const [heading, ...rows] = [...page.matchAll(/^\| (.+) \| (.+) \|$/gm)].map(([, expressions]) => expressions!)
  t.equal(heading, 'expression')
  const expressions = rows.flatMap(row => [...row.matchAll(/`([^`]+)`/g)].map(([, expression]) => expression!))
  t.ok(expressions.length > 8)
  await site.run(expressions.map(expression => `stillpoint schedule next --at '${expression}' > /dev/null`).join('\n'))
  await site.run(
    'stillpoint schedule run evening --async; until stillpoint backup show evening-db > /dev/null 2>&1; do sleep 0.1; done',
  )
  const [pull] = blocksOf('docs/schedules.md', 'console')
  await site.run(pull!.slice(2).replace('/run/stillpoint', at('/run/stillpoint')).replace('/mnt/usb', at('/srv/restore')))
  t.ok(readFileSync(at('/srv/restore/root.raw')).equals(bytes))
  await site.run("until stillpoint schedule show evening | grep -q 'done'; do sleep 0.1; done")

  const [monitor] = blocksOf('docs/metrics.md', 'console')
  const [command, shown] = monitor!.split('\n')
  t.match(shown, /^STILLPOINT CRITICAL - .+ \| '.+'=\d+s$/)
  t.match(await site.run(command!.slice(2)), /^STILLPOINT OK - .+ \| '.+'=\d+s/)
})

t.test('the pages about bitmaps, the control socket and NBD do what they say', { skip: missing('bash', 'nbdinfo') }, async t => {
  await using stack = new AsyncDisposableStack()
  const site = await installed(stack, 'bitmaps.md')
  const at = (path: string) => `${site.folder}${path}`
  await site.run(`stillpoint image create -q -f qcow2 ${at('/srv/disk.qcow2')} 4M
stillpoint image create -q -f raw ${at('/srv/disk.raw')} 4M`)
  const [node, shell, ...rest] = [...blocksOf('docs/control-socket.md', 'console')[0]!.matchAll(/^\$ (.*)$/gm)].map(
    ([, one]) => one!,
  )
  t.match(rest, [/^socat/])
  await site.run(node!.replace('/srv', at('/srv')))
  t.match(await site.run('stillpoint qmp query-named-block-nodes'), /"node-name": "disk"/)
  await site.run(shell!)
  const [greeting, capabilities, answer] = blocksOf('docs/control-socket.md', 'console')[0]!.trim().split('\n').slice(-3)
  const client = connect(at('/run/stillpoint/control.sock'))
  client.end(`${capabilities}\n`)
  t.same((await text(client)).trim().split(/\r?\n/), [greeting, answer])

  await site.run(`stillpoint qmp blockdev-del '{"node-name": "disk"}'
stillpoint qmp blockdev-add '{"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": "${at('/srv/disk.qcow2')}"}}'`)
  t.same(await site.follow(), [], 'the bitmap is added, and removed again')
  t.notMatch(await site.run('stillpoint qmp query-named-block-nodes'), /monday/)
  await site.run(`stillpoint qmp blockdev-del '{"node-name": "disk"}'`)

  const [serve] = [...textOf('docs/nbd.md').matchAll(/^ {4}(stillpoint nbd .*)$/gm)].map(([, command]) => command!)
  const socket = at('/run/disk.sock')
  await site.run(`cd ${at('/srv')}
'${process.execPath}' '${join(root, 'dist/src/main.js')}' ${serve!.replace('stillpoint ', '').replace('/run/disk.sock', socket)} &
until nbdinfo --size 'nbd+unix:///?socket=${socket}'; do sleep 0.1; done
kill %1
wait`)
})
