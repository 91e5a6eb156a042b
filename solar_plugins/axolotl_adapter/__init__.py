"""Every fact about Axolotl that this package stands on. Nothing else imports it."""
