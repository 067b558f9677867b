struct HelpCommand: Command {
    let spec = CommandSpec(
        name: "help", summary: "explain a command",
        operands: [.init(name: "COMMAND", isRequired: false)],
        options: [
            .init("as", value: "text|man|man-conf|bash-completion",
                  help: "Print all of it as shadow-virt(1) or shadow-virt.conf(5) for `man`, or as bash's completion; default: text."), .help,
        ],
        description: ["Prints the same as `shadow-virt COMMAND --help`; without COMMAND, the list of commands."],
        examples: [
            .init("shadow-virt help protect", "All about protect"),
            .init("shadow-virt help --as man > shadow-virt.1", "All about everything, as a manual page"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let specs = context.table.commands.map(\.spec)
        switch arguments.value("as") ?? "text" {
        case "text": break
        case "man", "man-conf", "bash-completion":
            guard arguments.operands.isEmpty else { throw misuse("Option '--as' takes no COMMAND beside it: it prints all of them") }
            context.output.data(arguments.value("as") == "man" ? CommandManual.text(specs)
                : arguments.value("as") == "man-conf" ? ConfigurationManual.text : BashCompletion.text(specs))
            return ExitCode.ok
        case let other: throw misuse("Unknown form '\(other)': use text, man, man-conf or bash-completion")
        }
        guard let name = arguments.operands.first else {
            context.output.data(Help.general(specs))
            return ExitCode.ok
        }
        context.output.data(Help.text(try context.table.command(named: name).spec))
        return ExitCode.ok
    }
}
