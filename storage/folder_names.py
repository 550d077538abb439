"""The names of folders that storage itself puts something into, or makes something of."""

JUNK_FOLDER = "Junk"
TRASH_FOLDER = "Trash"
# Made with the first message that it is to keep. No attribute of RFC 6154 says what it is.
REJECTS = "Rejects"
