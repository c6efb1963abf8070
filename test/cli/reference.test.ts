// The reference of the command line: the page, the man page and the completion say what the program has.

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Command } from 'commander'
import t from 'tap'
import { commands } from '../../src/cli/commands/index.ts'
import { createProgram } from '../../src/cli/program.ts'
import { bashCompletion } from '../../src/cli/reference/bash-completion.ts'
import { manPageText, withReference } from '../../src/cli/reference/write-reference.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const docs = fileURLToPath(new URL('../../../docs/', import.meta.url))
const page = readFileSync(`${docs}command-line.md`, 'utf8')
const manFile = `${docs}stillpoint.1`
const program = createProgram({ runDaemon: async () => undefined })

const leaves = (command: Command, path = ''): { command: Command; path: string }[] =>
  command.commands.length === 0
    ? [{ command, path: path.trim() }]
    : command.commands.flatMap(inner => leaves(inner, `${path} ${inner.name()}`))

t.test('the page and the man page are as the commands are', async t => {
  t.equal(page, withReference(page), 'otherwise: npm run reference')
  t.equal(readFileSync(manFile, 'utf8'), manPageText, 'otherwise: npm run reference')
})

t.test('the page names every command with all of its options and arguments', async t => {
  const everywhere = page.split('### ', 1)[0]!
  const all = leaves(program)
  t.ok(all.length > 10)
  for (const { command, path } of all) {
    const from = page.indexOf(`### ${path}\n`)
    t.ok(from > 0, path)
    const section = page.slice(from, page.indexOf('\n### ', from + 1) + 1 || undefined)
    for (const { flags } of command.options.filter(({ hidden }) => !hidden))
      t.ok(section.includes(`\`${flags}\``) || everywhere.includes(`\`${flags}\``), `${path} ${flags}`)
    for (const argument of command.registeredArguments)
      t.match(section, new RegExp(`[<[]${argument.name()}(\\.\\.\\.)?[>\\]]`), path)
  }
  for (const { long } of program.options) t.match(page + manPageText.replaceAll('\\', ''), long!)
})

t.test('groff formats the man page without a warning', { skip: missing('groff') }, async t => {
  const { code, stdout, stderr } = await attempt('groff', ['-man', '-Tutf8', '-ww', '-P-cbou', manFile])
  t.same([code, stderr], [0, ''])
  const words = stdout.replaceAll(/\u2010\n\s*/g, '').replaceAll(/\s+/g, ' ')
  for (const { path } of leaves(program)) t.match(words, `stillpoint ${path}`)
  t.match(words, "stillpoint backup start db --pull --json | jq -r '.disks[].uri'", 'an example can be copied')
})

t.test('man shows the page', { skip: missing('man') }, async t => {
  const { code, stdout, stderr } = await attempt('man', ['--warnings', '-l', manFile], {
    env: { MANWIDTH: '100', LC_ALL: 'C.UTF-8' },
  })
  t.same([code, stderr], [0, ''])
  t.match(stdout, 'EXIT STATUS')
})

t.test('bash completes commands, options and names', { skip: missing('bash') }, async t => {
  const folder = t.testdir({
    // A program that answers what the completion asks of it.
    stillpoint: `#!/bin/sh
      case "$*" in
        *'disk list') printf 'DISK  NODE\\ndb/root  db.root\\ndb/data  db.data\\nweb/root  web.root\\n' ;;
        *'backup list') printf 'SESSION  MACHINE\\nfull  db\\nmore  db\\n' ;;
        *'checkpoint list db') printf 'MACHINE  CHECKPOINT\\ndb  monday\\ndb  tuesday\\n' ;;
        *'--socket /s.sock qmp query-commands') printf '[\\n  { "name": "query-jobs" },\\n  { "name": "query-block" }\\n]\\n' ;;
      esac`,
    completion: bashCompletion(commands(async () => undefined)),
  })
  const complete = async (line: string) => {
    const words = line.split(' ').map(word => `'${word}'`)
    const script = `chmod +x ./stillpoint; PATH=$PWD:$PATH; . ./completion
      COMP_WORDS=(${words.join(' ')}); COMP_CWORD=${words.length - 1}; _stillpoint; echo "\${COMPREPLY[@]}"`
    return (await run('bash', ['--norc', '-c', script], { cwd: folder })).trim()
  }
  t.equal(
    await complete('stillpoint '),
    'daemon status config disk checkpoint backup schedule restore serve nbd point repo image qmp monitor doctor completion --socket --json --help --version',
  )
  t.equal(await complete('stillpoint ch'), 'checkpoint')
  t.equal(await complete('stillpoint backup '), 'start estimate list show finish abort')
  t.equal(await complete('stillpoint backup start --s'), '--since --speed --socket')
  t.equal(await complete('stillpoint backup start '), 'db web')
  t.equal(await complete('stillpoint backup start db --pull --since '), 'monday tuesday')
  t.equal(await complete('stillpoint backup start --name x d'), 'db')
  t.equal(await complete('stillpoint backup finish '), 'full more')
  t.equal(await complete('stillpoint disk map db/'), 'db/root db/data')
  t.equal(await complete('stillpoint checkpoint delete db t'), 'tuesday')
  t.equal(await complete('stillpoint checkpoint create db '), '--description --quiesce --no-quiesce --json --socket --help')
  t.equal(await complete('stillpoint --socket /s.sock qmp query-b'), 'query-block')
  t.equal(await complete('stillpoint daemon --log-level '), 'debug info warn error silent')
  t.equal(await complete('stillpoint daemon --config st'), 'stillpoint')
})
