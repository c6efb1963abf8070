// The reference of docs/command-line.md: exit codes, environment and every command, from their definitions.

import type { Option } from 'commander'
import { commonOptions, type Noun, type Verb } from '../define.ts'
import { environment, exitCodeMeanings } from '../exit-codes.ts'
import { allVerbs, sentence, type NamedVerb } from './all-verbs.ts'

/** What the page has between its markers. */
export const reference = (commands: readonly (Noun | Verb)[]): string =>
  [
    '## Exit codes\n',
    markdownTable(
      ['code', 'meaning'],
      exitCodeMeanings.map(([code, meaning]) => [String(code), meaning]),
    ),
    '\n## Environment\n',
    markdownTable(
      ['variable', 'meaning'],
      environment.map(([name, meaning]) => [`\`${name}\``, meaning]),
    ),
    '\n## Commands\n',
    'Every command has these options, which may stand before it as well (`daemon`, `completion` and `backup start` have no `--socket` for the daemon):\n',
    markdownTable(
      ['', ''],
      [
        ...commonOptions().map(({ flags, description }) => [`\`${flags}\``, description]),
        ['`-h, --help`', 'show its help, with examples'],
      ],
    ),
    ...allVerbs(commands).map(section),
  ].join('\n')

function section({ path, usage, verb }: NamedVerb): string {
  const { summary, details, arguments: args = {}, examples } = verb
  const rows = [
    ...Object.entries(args).map(([name, what]) => [`\`${name}\``, what]),
    ...(verb.options ?? []).filter(({ hidden }) => !hidden).map(option => [`\`${option.flags}\``, withDefault(option)]),
  ]
  const commands = examples.map(([command, what]) => `# ${what}\n${command}\n`).join('')
  const parts = [
    `\n### ${path}\n`,
    `\`${usage} [options]\`\n`,
    `${sentence(summary)}${details ? ` ${details}` : ''}\n`,
    rows.length > 0 ? `${markdownTable(['', ''], rows)}\n` : '',
    `\`\`\`sh\n${commands}\`\`\``,
  ]
  return parts.filter(Boolean).join('\n')
}

const withDefault = ({ description, defaultValue, argChoices }: Option) => {
  const choices = argChoices ? `: ${argChoices.join(', ')}` : ''
  return `${description}${choices}${typeof defaultValue === 'string' ? ` (default: ${defaultValue})` : ''}`
}

const tableLine = (cells: readonly string[]) =>
  `| ${cells.map(cell => cell.replaceAll('|', '\\|')).join(' | ')} |`.replaceAll(/ +(?=\|)/g, ' ')

const markdownTable = (head: readonly string[], rows: readonly (readonly string[])[]) =>
  [tableLine(head), `|${head.map(() => '---|').join('')}`, ...rows.map(tableLine)].join('\n')
