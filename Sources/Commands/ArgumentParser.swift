import Configuration

/// A command line that makes no sense: exit code 64.
struct UsageError: Error, Equatable {
    var message: String
    /// The command whose help is worth reading; nil: the general one.
    var command: String?
}

/// What was given on the command line, checked against a `CommandSpec`.
struct ParsedArguments: Equatable {
    var operands: [String] = []
    var values: [String: String] = [:]
    /// All values of options that may be given several times; the first of them stands in `values`.
    var lists: [String: [String]] = [:]
    var switches: Set<String> = []

    func has(_ name: String) -> Bool { switches.contains(name) }
    func value(_ name: String) -> String? { values[name] }
}

/// GNU style: `--name VALUE`, `--name=VALUE`, `-q`, `-c VALUE`, `--` ends the options, operands and options in any order.
struct ArgumentParser {
    private let spec: CommandSpec
    private var rest: ArraySlice<String>
    private var parsed = ParsedArguments()

    /// Parses the words after the command. `--help` wins over whatever else is wrong.
    static func parse(_ words: [String], _ spec: CommandSpec) throws(UsageError) -> ParsedArguments {
        let options = words.prefix { $0 != "--" }
        if options.contains("--help") || options.contains("-h") { return ParsedArguments(switches: ["help"]) }
        var parser = ArgumentParser(spec: spec, rest: words[...])
        return try parser.run()
    }

    private init(spec: CommandSpec, rest: ArraySlice<String>) {
        self.spec = spec
        self.rest = rest
    }

    private mutating func run() throws(UsageError) -> ParsedArguments {
        while let word = rest.popFirst() {
            if word == "--" {
                for operand in rest { try take(operand: operand) }
                break
            } else if word.hasPrefix("--") {
                try take(long: word.dropFirst(2))
            } else if word.hasPrefix("-"), word.count > 1 {
                try take(short: word.dropFirst())
            } else {
                try take(operand: word)
            }
        }
        try checkComplete()
        return parsed
    }

    private mutating func take(long word: Substring) throws(UsageError) {
        let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let name = parts.first.map(String.init) ?? ""
        guard let option = spec.option(long: name) else { throw unknown(option: "--\(name)") }
        if parts.count == 2, option.value == nil { throw usage("Option '--\(name)' takes no value") }
        try take(option, shown: "--\(name)", attached: parts.count == 2 ? String(parts[1]) : nil)
    }

    /// `-q`, `-cURI`, and switches in a bundle.
    private mutating func take(short word: Substring) throws(UsageError) {
        var letters = word
        while let letter = letters.popFirst() {
            guard let option = spec.option(short: letter) else { throw unknown(option: "-\(letter)") }
            if option.value != nil {
                try take(option, shown: "-\(letter)", attached: letters.isEmpty ? nil : String(letters))
                return
            }
            try take(option, shown: "-\(letter)", attached: nil)
        }
    }

    private mutating func take(_ option: CommandSpec.Option, shown: String, attached: String?) throws(UsageError) {
        guard let placeholder = option.value else {
            parsed.switches.insert(option.long)
            return
        }
        // What looks like the next option is not taken for a value: `--to --interval 20ms` forgot a word.
        let next = rest.first.flatMap { $0.hasPrefix("--") ? nil : $0 }
        guard let value = attached ?? next, !value.isEmpty else { throw usage("Option '\(shown)' needs a value: \(placeholder)") }
        if attached == nil { rest.removeFirst() }
        if option.isRepeatable {
            parsed.lists[option.long, default: []].append(value)
            parsed.values[option.long] = parsed.values[option.long] ?? value
            return
        }
        guard parsed.values.updateValue(value, forKey: option.long) == nil else { throw usage("Option '\(shown)' is given twice") }
    }

    private mutating func take(operand word: String) throws(UsageError) {
        guard parsed.operands.count < spec.operands.count else {
            let names = spec.operands.map(\.name).joined(separator: " ")
            throw usage("Unexpected word '\(word)'" + (names.isEmpty ? "" : " after \(names)"))
        }
        guard !word.isEmpty, word.unicodeScalars.allSatisfy({ $0.value >= 0x20 && $0.value != 0x7F }) else {
            throw usage("\(spec.operands[parsed.operands.count].name) is empty or holds a control character")
        }
        parsed.operands.append(word)
    }

    private func checkComplete() throws(UsageError) {
        if parsed.operands.count < spec.operands.count, spec.operands[parsed.operands.count].isRequired {
            throw usage("Missing \(spec.operands[parsed.operands.count].name)")
        }
        for option in spec.options where option.isRequired && parsed.values[option.long] == nil {
            throw usage("Missing --\(option.long) \(option.value ?? "")")
        }
    }

    private func unknown(option: String) -> UsageError {
        let closest = ClosestName.to(option, among: spec.options.map { "--\($0.long)" })
        return usage("Unknown option '\(option)'" + (closest.map { ": did you mean '\($0)'?" } ?? ""))
    }

    private func usage(_ message: String) -> UsageError { UsageError(message: message, command: spec.name) }
}
