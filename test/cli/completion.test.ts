// The completions, as the shells themselves answer.

import { readFileSync } from 'node:fs'
import t from 'tap'
import { commands } from '../../src/cli/commands/index.ts'
import { zshCompletion } from '../../src/cli/reference/zsh-completion.ts'
import { missing, run } from '../helpers/tools.ts'

/**
 * Types lines into a zsh in a terminal of its own, a tab behind each, and takes them back again. What the completion system is told is in the
 * file `told`, with a line of three dashes behind what belongs to each.
 */
const ASKER = String.raw`
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "source ./inside"
for line; do zpty -w shell "$line"$'\t\007print -r -- --- >> told'; done
zpty -w shell exit
while zpty -r shell answer; do :; done
true
`
const INSIDE = String.raw`
PATH=$PWD:$PATH
fpath=($PWD $fpath)
autoload -Uz compinit
compinit -u -D
compadd() {
  local -a matches
  if [[ " $*" == *' -'[OA]' '* ]]; then builtin compadd "$@"; return; fi
  builtin compadd -A matches "$@"
  (( $#matches )) && print -rl -- $matches >> told
  builtin compadd "$@"
}
bindkey -e
# Not the terminal's own key for it, which takes back the tab as well while no line is being edited.
bindkey '^G' kill-whole-line
setopt no_auto_list no_auto_menu no_beep
`

t.test('zsh completes commands, options and names', { skip: missing('zsh') }, async t => {
  const folder = t.testdir({
    // A program that answers what the completion asks of it.
    stillpoint: `#!/bin/sh
      case "$*" in
        *'disk list') printf 'DISK  NODE\\ndb/root  db.root\\ndb/data  db.data\\nweb/root  web.root\\n' ;;
        *'backup list') printf 'SESSION  MACHINE\\nfull  db\\nmore  db\\n' ;;
        *'checkpoint list db') printf 'MACHINE  CHECKPOINT\\ndb  monday\\ndb  tuesday\\n' ;;
        '--socket /s.sock qmp query-commands') printf '[\\n  { "name": "query-jobs" },\\n  { "name": "query-block" }\\n]\\n' ;;
      esac`,
    _stillpoint: zshCompletion(commands(async () => undefined)),
    ask: ASKER,
    inside: INSIDE,
  })
  await run('chmod', ['+x', 'stillpoint'], { cwd: folder })
  const expected: Readonly<Record<string, string>> = {
    'stillpoint ': commands(async () => undefined)
      .map(({ name }) => name)
      .sort()
      .join(' '),
    'stillpoint ch': 'checkpoint',
    'stillpoint backup ': 'abort estimate finish list show start',
    'stillpoint backup start --s': '--since --socket --speed',
    'stillpoint backup start ': 'db web',
    'stillpoint backup start --name x d': 'db',
    'stillpoint backup finish ': 'full more',
    'stillpoint disk map db/': 'db/data db/root',
    'stillpoint checkpoint delete db t': 'tuesday',
    'stillpoint --socket /s.sock qmp query-b': 'query-block',
    'stillpoint daemon --log-level ': 'debug error info silent warn',
    'stillpoint daemon --config st': 'stillpoint',
  }
  await run('zsh', ['-f', './ask', ...Object.keys(expected)], { cwd: folder })
  const told = readFileSync(`${folder}/told`, 'utf8').split('---\n')
  for (const [index, [line, words]] of Object.entries(expected).entries())
    t.equal([...new Set(told[index]!.trim().split('\n'))].sort().join(' '), words, line)
})
