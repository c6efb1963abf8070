// stillpoint completion: what a shell needs to complete commands, options and names.

import { Misuse } from '../failure.ts'
import { verb, type Noun, type Verb } from '../define.ts'
import { print, printJson } from '../output.ts'

/** `commands` are those to complete. */
export const completion = (commands: readonly (Noun | Verb)[]): Verb =>
  verb<{ shell: string }>({
    name: 'completion',
    summary: 'print what a shell needs to complete commands, options and names',
    arguments: { '<shell>': 'bash' },
    namesDaemon: false,
    examples: [
      ['source <(stillpoint completion bash)', 'for this shell'],
      ['stillpoint completion bash > /etc/bash_completion.d/stillpoint', 'for every bash from now on'],
    ],
    async run({ args: { shell }, json }) {
      if (shell !== 'bash') throw new Misuse(`There is completion for bash, and none for ${shell}`)
      const { bashCompletion } = await import('../reference/bash-completion.ts')
      const script = bashCompletion(commands)
      if (json) printJson({ shell, script })
      else print(script)
    },
  })
