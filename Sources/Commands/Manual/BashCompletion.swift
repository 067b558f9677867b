/// Completion for bash, from the commands' own descriptions. It needs nothing of the package bash-completion.
enum BashCompletion {
    static func text(_ specs: [CommandSpec]) -> String {
        let names = specs.map(\.name).joined(separator: " ")
        let cases = specs.map { spec in
            "    \(spec.name)) options='\(spec.options.map { "--\($0.long)" }.joined(separator: " "))' operands=(\(spec.operands.map(kind).joined(separator: " "))) ;;\n"
        }.joined()
        let choices = choices(specs).map { "    \($0.options.joined(separator: " | "))) _shadow_virt_words \($0.action) ;;\n" }.joined()
        let valued = Set(specs.flatMap(\.options).filter { $0.value != nil }.flatMap { ["--\($0.long)"] + ($0.short.map { ["-\($0)"] } ?? []) }).sorted()
        return template.replacing("@VALUED@", with: valued.joined(separator: " ")).replacing("@COMMANDS@", with: names).replacing("@CASES@", with: cases).replacing("@CHOICES@", with: choices)
    }

    /// What an operand may be: a kind that the script knows, or its words, `get|set|clear`.
    private static func kind(_ operand: CommandSpec.Operand) -> String {
        switch operand.name {
        case "DOMAIN": "domains"
        case "HOST": "hosts"
        case "COMMAND": "commands"
        case "DIR": "files"
        default: operand.name.contains("|") ? "'\(operand.name)'" : "none"
        }
    }

    /// What may follow an option, by its value's name in the help. A choice, `table|json`, speaks for itself.
    private static func action(_ value: String) -> String {
        switch value {
        case "HOST": return "\"$(_shadow_virt_hosts)\""
        case "FILE", "PATH", "DIR": return "--files"
        case _ where value.contains("|"): return "$'" + value.split(separator: "|").joined(separator: "\\n") + "'"
        default: return "''"
        }
    }

    /// Options with a value, those with the same way of completing it together. The same option means the same in every command.
    private static func choices(_ specs: [CommandSpec]) -> [(options: [String], action: String)] {
        var groups: [(options: [String], action: String)] = []
        for option in specs.flatMap(\.options) {
            guard let value = option.value else { continue }
            let action = action(value)
            let words = ["--\(option.long)"] + (option.short.map { ["-\($0)"] } ?? [])
            if groups.contains(where: { $0.options.contains(words[0]) }) { continue }
            if let index = groups.firstIndex(where: { $0.action == action }) { groups[index].options += words } else { groups.append((words, action)) }
        }
        return groups
    }

    private static let template = #"""
        # Completion of shadow-virt(1) for bash. Made by `shadow-virt help --as bash-completion`.

        # Domains: those that the service knows, and those of libvirt.
        _shadow_virt_domains() {
          "${COMP_WORDS[0]}" status --format json 2>/dev/null </dev/null | sed -n 's/^ *"domain" *: *"\(.*\)",\{0,1\}$/\1/p'
          if type virsh >/dev/null 2>&1; then timeout 2 virsh --readonly --quiet list --all --name 2>/dev/null </dev/null; fi
        }

        # Hosts: the first word of each string in the configuration's `peers`.
        _shadow_virt_hosts() {
          local file=/etc/shadow-virt/shadow-virt.conf i
          for ((i = 1; i < COMP_CWORD; i++)); do
            [[ ${COMP_WORDS[i]} != --config ]] || { file=${COMP_WORDS[i + 1]}; [[ $file != = ]] || file=${COMP_WORDS[i + 2]}; }
          done
          sed -n '/^[[:space:]]*#/d; /^[[:space:]]*peers[[:space:]]*=/,/\]/s/"\([^" ]*\) /\n\1\n/gp' "$file" 2>/dev/null | grep -x '[A-Za-z0-9][A-Za-z0-9._-]*'
        }

        # WORDS, one a line, or --files: what of that begins with the word at the cursor.
        _shadow_virt_words() {
          local word
          if [[ $1 == --files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
            return
          fi
          # A name may hold blanks: quoted, as one word.
          while IFS= read -r word; do
            [[ -z $word || $word != "$current"* ]] || COMPREPLY+=("$(printf %q "$word")")
          done < <(sort -u <<<"$1")
        }

        _shadow_virt() {
          local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command='' options='' operands=() given=0 kind i
          local commands='@COMMANDS@' valued=' @VALUED@ '
          COMPREPLY=()
          if [[ $current == = ]]; then current=''; elif [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD - 2]}; fi
          for ((i = 1; i < COMP_CWORD; i++)); do
            if [[ -n $command ]]; then
              # An operand, unless it belongs to an option. bash takes --to=b for three words.
              [[ ${COMP_WORDS[i]} == [-=]* || ${COMP_WORDS[i - 1]} == = || $valued == *" ${COMP_WORDS[i - 1]} "* ]] || ((given += 1))
            elif [[ " $commands " == *" ${COMP_WORDS[i]} "* ]]; then
              command=${COMP_WORDS[i]}
            fi
          done
          case $command in
        @CASES@  esac
          if [[ $previous == -* ]]; then
            case $previous in
        @CHOICES@    *) previous='' ;;
            esac
            [[ -z $previous ]] || return 0
          fi
          if [[ -z $command ]]; then
            _shadow_virt_words "${commands// /$'\n'}"$'\n--help\n--version'
          elif [[ $current == -* ]]; then
            _shadow_virt_words "${options// /$'\n'}"
          else
            kind=${operands[given]:-none}
            case $kind in
            domains) _shadow_virt_words "$(_shadow_virt_domains)" ;;
            hosts) _shadow_virt_words "$(_shadow_virt_hosts)" ;;
            commands) _shadow_virt_words "${commands// /$'\n'}" ;;
            files) _shadow_virt_words --files ;;
            *'|'*) _shadow_virt_words "${kind//|/$'\n'}" ;;
            esac
          fi
        }

        complete -F _shadow_virt shadow-virt

        """#
}
