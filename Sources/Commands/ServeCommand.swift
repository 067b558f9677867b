import Configuration

struct ServeCommand: Command {
    let spec = CommandSpec(
        name: "serve", summary: "run the service of this host",
        options: [.config, .init("socket", value: "PATH", help: "Listen for commands at PATH instead of the configured control_socket."), .help],
        description: [
            "Runs the service: it keeps the shadows of this host's guests up to date, holds the shadows of other hosts' guests, "
                + "and answers the other commands. It stays in the foreground and logs to stderr; systemd starts it as shadow-virt.service.",
            "When the service stops, crashes or is updated, the guests run on; protection begins anew with its next start.",
        ],
        examples: [
            .init("systemctl enable --now shadow-virt", "The usual way"),
            .init("shadow-virt serve --config /tmp/test.conf", "By hand, with another configuration"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        var configuration = try context.configuration(arguments)
        if let socket = arguments.value("socket") { configuration.controlSocket = socket }
        return context.table.serve(configuration, configuration.file)
    }
}
