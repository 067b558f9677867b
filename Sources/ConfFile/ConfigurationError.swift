/// What is wrong with a configuration, where, and what to do about it.
public struct ConfigurationError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The file, as it was named.
    public let file: String
    /// Line and column, both from 1; columns count characters. Absent when the file as a whole is meant.
    public let position: ConfDocument.Position?
    /// What is wrong; no period at the end.
    public let message: String
    /// What to do about it; empty when the message says it all.
    public let advice: String

    public init(file: String, position: ConfDocument.Position? = nil, message: String, advice: String = "") {
        self.file = file
        self.position = position
        self.message = message
        self.advice = advice
    }

    /// The message with its place, without the advice.
    public var located: String {
        guard let position else { return "\(file): \(message)" }
        return "\(file), line \(position.line), column \(position.column): \(message)"
    }

    public var description: String { advice.isEmpty ? located : "\(located). \(advice)" }
}
