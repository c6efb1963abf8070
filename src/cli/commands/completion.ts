// stillpoint completion: what a shell needs to complete commands, options and names.

import { Misuse } from '../failure.ts'
import { verb, type Noun, type Verb } from '../define.ts'
import { print, printJson } from '../output.ts'
import { shells } from '../reference/value-kinds.ts'

/** `commands` are those to complete. */
export const completion = (commands: readonly (Noun | Verb)[]): Verb =>
  verb<{ shell: string }>({
    name: 'completion',
    summary: 'print what a shell needs to complete commands, options and names',
    arguments: { '<shell>': shells.join(', ') },
    namesDaemon: false,
    examples: [
      ['source <(stillpoint completion bash)', 'for this shell'],
      ['stillpoint completion bash > /etc/bash_completion.d/stillpoint', 'for every bash from now on'],
      ['stillpoint completion zsh > /usr/local/share/zsh/site-functions/_stillpoint', 'for every zsh'],
    ],
    async run({ args: { shell }, json }) {
      const script = await scriptFor(shell, commands)
      if (script === undefined) throw new Misuse(`There is completion for ${shells.join(' and ')}, and none for ${shell}`)
      if (json) printJson({ shell, script })
      else print(script)
    },
  })

async function scriptFor(shell: string, commands: readonly (Noun | Verb)[]) {
  if (shell === 'bash') return (await import('../reference/bash-completion.ts')).bashCompletion(commands)
  if (shell === 'zsh') return (await import('../reference/zsh-completion.ts')).zshCompletion(commands)
  return undefined
}
